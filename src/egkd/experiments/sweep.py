"""Fair tuning: every method tries equally many values of its settings, judged on rows held out of train.

A sweep is a folder, and so is each of its trials, which is an ordinary run. optuna chooses the values and keeps them in a
journal; whoever starts the same sweep again, here or on another machine that shares the folder, is one more worker. A trial
belongs to the worker that holds its lock, which the operating system lets go of when the worker dies: another one takes its
run up where it stopped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from egkd.config import RunConfig, near, read_yaml
from egkd.data import Task
from egkd.experiments.chosen import Trial, grid_of, write_results
from egkd.experiments.grid import GridConfig
from egkd.experiments.space import Range, Space, SweepConfig, ends, spelled
from egkd.runs import check_writable, read_json, write_text

if TYPE_CHECKING:
    import optuna

SWEEP = "sweep.yaml"
STUDY = "study.log"
Run = Callable[[RunConfig, Path], object]
"""Makes a run in a folder, or goes on with the one that is there; leaves `metrics.json`."""


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A trial that is this worker's."""

    method: str
    number: int
    values: Mapping[str, Any]
    lock: FileLock = field(repr=False)

    def folder(self, out: Path) -> Path:
        return trial_folder(out, self.method, self.number)


def trial_folder(out: Path, method: str, number: int) -> Path:
    """The run folder of a trial."""
    return out / "trials" / method / f"{number:04d}"


def sweep(
    config: SweepConfig, out: Path, run: Run, *, teach: Run | None = None, tell: Callable[[str], None] = print
) -> dict[str, list[Trial]]:
    """Work at the sweep in folder `out` until no trial is left to begin; returns the trials of every method so far.

    `run` makes a trial's run, `teach` fine-tunes the teacher where none is given. Results are written after every trial, see
    `write_results`. Interrupted, the same call goes on. Raises ValueError, one line, where optuna is missing, or `out` holds
    another sweep.
    """
    worker = _Worker(config, out)
    worker.claim()
    _fine_tune(config, out, teach)
    while (turn := worker.next()) is not None:
        tell(f"{turn.method}, trial {turn.number + 1} of {config.trials}: {spelled(turn.values)}")
        try:
            try:
                run(config.run(turn.method, turn.values, out), turn.folder(out))
            except (ValueError, RuntimeError):  # these values, or no memory for them: the same call tries others
                worker.give_up(turn)
                raise
            score = worker.finish(turn)
        finally:
            turn.lock.release()
        tell(f"{turn.method}, trial {turn.number + 1} of {config.trials}: {score:.4f}")
    found = worker.tell_all()
    left = sum(trial.state == "running" for trials in found.values() for trial in trials)
    if left:
        tell(f"still at work elsewhere: {left} trials; the last worker completes the results")
    return found


def _fine_tune(config: SweepConfig, out: Path, teach: Run | None) -> None:
    """One worker does it, the others wait."""
    teacher, folder = config.teacher(), config.teacher_folder(out)
    if teacher is None:
        return
    assert teach is not None
    with FileLock(out / ".teacher.lock"):
        if not (folder / "teacher" / "config.json").exists():
            teach(teacher, folder)


class _Worker:
    """One of those who work at a sweep. Whatever looks at several trials happens under one lock."""

    def __init__(self, config: SweepConfig, out: Path) -> None:
        self.optuna = _optuna()
        self.out = out
        self._learn_of(config)
        self.lock = FileLock(out / ".lock")

    def claim(self) -> None:
        """Make the folder this sweep's. Raises ValueError where it is another's; more trials and methods may be asked for."""
        check_writable(self.out, "--out")
        strange = self.out.exists() and any(not path.name.startswith(".") for path in self.out.iterdir())
        if strange and not (self.out / SWEEP).exists():
            raise ValueError(f"{self.out} is not an empty folder and holds no sweep; name another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if (self.out / SWEEP).exists():
                known = SweepConfig.of(read_yaml(self.out / SWEEP))
                there, ours = known.model_dump(mode="json"), self.config.model_dump(mode="json")
                changed = sorted(name for name in {*there, *ours} - {"trials", "methods"} if there.get(name) != ours.get(name))
                gone = [name for name, own in there["methods"].items() if ours["methods"].get(name) != own]
                changed += [f"methods.{name}" for name in gone]
                if changed or there["trials"] > ours["trials"]:
                    what = ", ".join(changed) or f"{there['trials']} trials of each method"
                    raise ValueError(f"{self.out} holds another sweep ({what}); name another --out, or delete it")
            write_text(self.out / SWEEP, self.config.to_yaml())
            journal = self.optuna.storages.journal
            self.storage = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(self.out / STUDY)))
            for method in self.config.methods:
                self._study(method)

    def next(self) -> _Turn | None:
        """A trial to run: first one whose worker died, else a new one of the method that has fewest; None if there is none."""
        with self.lock:
            studies = {method: self._study(method) for method in self.config.methods}
            for method, study in studies.items():
                for trial in study.get_trials(states=[self.optuna.trial.TrialState.RUNNING]):
                    if turn := self._taken(method, trial.number, trial.params):
                        if set(trial.params) == set(self.spaces[method]):
                            return turn
                        study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)  # died before it had all its values
                        turn.lock.release()
            begun = {method: len(self._counted(method, study)) for method, study in studies.items()}
            method = min(begun, key=lambda name: begun[name])
            if begun[method] >= self.config.trials:
                return None
            number = len(studies[method].get_trials(deepcopy=False))
            asked = self._study(method, number).ask(self.spaces[method])
            return self._taken(method, asked.number, asked.params)

    def finish(self, turn: _Turn) -> float:
        """Keep a trial's score, which is in its run folder, and write all so far; returns the score."""
        metrics = read_json(turn.folder(self.out) / "metrics.json")
        name = self.config.metric or metrics["task"]["metrics"][0]
        scores = next(iter(metrics["student"]["scores"].values()))
        if name not in scores:
            raise ValueError(f"metric {name!r} is not measured; measured are {', '.join(scores)}")
        score = float("nan") if scores[name] is None else float(scores[name])
        with self.lock:
            study = self._study(turn.method)
            if math.isfinite(score):
                study.tell(turn.number, score)
            else:  # it counts as tried
                study.tell(turn.number, state=self.optuna.trial.TrialState.FAIL)
        self.tell_all()
        if not self.config.keep_students:
            for weights in (turn.folder(self.out) / "student").glob("model*.safetensors"):
                weights.unlink()
        return score

    def give_up(self, turn: _Turn) -> None:
        """Count a trial as tried that cannot be run."""
        with self.lock:
            self._study(turn.method).tell(turn.number, state=self.optuna.trial.TrialState.FAIL)
        self.tell_all()

    def tell_all(self) -> dict[str, list[Trial]]:
        """Write what came of all trials of every method that any worker has been asked for, and return it."""
        with self.lock:
            self._learn_of(SweepConfig.of(read_yaml(self.out / SWEEP)))
            found = {method: self._counted(method, self._study(method)) for method in self.config.methods}
            if metric := self.config.metric or _headline(found):
                write_results(self.config, self.out, found, metric)
        return found

    def _learn_of(self, config: SweepConfig) -> None:
        self.config = config
        self.spaces = {method: self._distributions(config.space_of(method)) for method in config.methods}

    def _counted(self, method: str, study: "optuna.Study") -> list[Trial]:
        """Those that were really begun."""
        return [
            Trial(
                number=trial.number,
                state=trial.state.name.lower(),
                values=dict(trial.params),
                score=trial.value if trial.state.name == "COMPLETE" else None,
                folder=trial_folder(self.out, method, trial.number),
            )
            for trial in study.get_trials(deepcopy=False)
            if set(trial.params) == set(self.spaces[method])
        ]

    def _taken(self, method: str, number: int, values: Mapping[str, Any]) -> _Turn | None:
        """The trial as this worker's own; None where another one is at it."""
        folder = trial_folder(self.out, method, number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        ordered = {name: values[name] for name in self.spaces[method] if name in values}
        return _Turn(method=method, number=number, values=ordered, lock=lock)

    def _study(self, method: str, number: int | None = None) -> "optuna.Study":
        """A method's study; with `number`, to draw the values of that trial.

        They depend on the sweep's seed, the number and the scores so far, not on who asks or how often a worker was begun.
        """
        sampler = None
        if number is not None:
            seed = np.random.SeedSequence((self.config.seed, number)).generate_state(1)[0]
            sampler = self.optuna.samplers.TPESampler(seed=int(seed))
        return self.optuna.create_study(
            study_name=method, storage=self.storage, sampler=sampler, direction="maximize", load_if_exists=True
        )

    def _distributions(self, space: Space) -> dict[str, Any]:
        known = self.optuna.distributions
        found: dict[str, Any] = {}
        for name, values in space.items():
            try:
                if not isinstance(values, Range):
                    found[name] = known.CategoricalDistribution(values)
                elif values.whole:
                    low, high, step = int(values.low), int(values.high), int(values.step or 1)
                    found[name] = known.IntDistribution(low, high, log=values.log, step=step)
                else:
                    found[name] = known.FloatDistribution(values.low, values.high, log=values.log, step=values.step)
            except ValueError as error:
                raise ValueError(f"space.{name}: {' '.join(str(error).split())}") from None
        return found


def _headline(trials: Mapping[str, Sequence[Trial]]) -> str | None:
    """The first of the metrics that runs have; None where no run has come to an end."""
    files = (trial.folder / "metrics.json" for its in trials.values() for trial in its)
    return next((str(read_json(file)["task"]["metrics"][0]) for file in files if file.exists()), None)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError(
            "egkd sweep needs optuna, which is not installed: pip install '.[hpo]' in the project's folder"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def check_runs(config: SweepConfig, out: Path) -> None:
    """Refuse settings that no run would take, at both ends of every range. Raises ValueError, one line, also without optuna."""
    from egkd.checks import objectives_of, training_arguments

    _optuna()
    _check_metric(config)
    GridConfig.of(grid_of(config, {method: {} for method in config.methods}))  # the names of methods name folders
    for method in config.methods:
        for values in ends(config.space_of(method)):
            try:
                run = config.run(method, values, out)
                objectives_of(run)
                training_arguments(run.train_arguments, out / "checkpoints", "train")
            except ValueError as error:
                raise ValueError(f"{method} with {spelled(values) or 'no values'}: {error}") from None


def check_sources(config: SweepConfig, out: Path) -> None:
    """Refuse data, teachers and students that are not there or cannot work together, before a trial is spent on finding out.

    Raises ValueError, one line.
    """
    from egkd.checks import check_between, objectives_of
    from egkd.data.loading import load_data
    from egkd.students import check_student

    tasks: dict[str, Task] = {}
    for method in config.methods:
        run = config.run(method, {}, out)
        if config.teacher() is not None:
            run = run.model_copy(update={"teacher": None, "teacher_init": config.base["teacher_init"]})
        data = run.data.model_dump_json()
        if data not in tasks:
            tasks[data] = load_data(run.data).task
        check_student(run.student, run.teacher or str(run.teacher_init), trust_remote_code=run.trust_remote_code)
        check_between(run, objectives_of(run), tasks[data])


def _check_metric(config: SweepConfig) -> None:
    """Refuse a metric that no trial will measure. Raises ValueError."""
    from egkd.data.loading import load_data

    if config.metric is not None:
        task = load_data(config.run(next(iter(config.methods)), {}, Path()).data).task
        if config.metric not in task.metrics:
            raise ValueError(f"metric: unknown metric {config.metric!r}; {near(config.metric, task.metrics)}")
