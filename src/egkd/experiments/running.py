"""An experiment's jobs, each in a process of its own, some side by side; and its tables, remade after every finished cell."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egkd.experiments.clock import Clock
from egkd.experiments.grid import Choice, GridConfig
from egkd.experiments.kept import CELLS, restore
from egkd.experiments.planning import GRID, Job, grown, plan
from egkd.experiments.processes import Process, Share, Start, Subprocess, cores, gpus
from egkd.experiments.results import Results
from egkd.runs import held, read_json, write_text

DURATIONS = "durations.jsonl"
_BESIDE = "use its --jobs to run cells side by side"
_PAUSE = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far an experiment is, in cells."""

    done: int
    total: int
    failed: int
    running: tuple[str, ...]
    """Names of jobs, teachers among them."""
    seconds_to_go: float | None
    """As far as finished jobs tell."""

    @property
    def left(self) -> int:
        """Cells that wait."""
        return self.total - self.done - self.failed - sum(not name.startswith("teachers/") for name in self.running)


def run(
    grid: GridConfig,
    out: Path,
    *,
    only: Choice | None = None,
    jobs: int = 1,
    tell: Callable[[str], None] = print,
    show: Callable[[Standing], None] | None = None,
    start: Start | None = None,
) -> dict[str, str]:
    """Run what is not finished of an experiment, or of a part of it, in folder `out`; returns what failed, in a line each.

    Interrupted, it stops its processes; the same call goes on. `start` begins a process; a subprocess by default. Raises
    ValueError, one line, for settings that cannot work, before anything is written.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected 1 or more")
    whole = grown(grid, out)
    if (out / CELLS).exists():
        with held(out / ".lock", out, _BESIDE):
            restore(out)
    work = plan(grid, out, only)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / ".lock", out, _BESIDE):
        write_text(out / GRID, whole.to_yaml())
        crew = _Crew(work, out, jobs, start or Subprocess)
        results = Results(whole, out)
        with _stops_on_sigterm():
            try:
                for job in crew.finished(lambda: show(crew.standing()) if show else None):
                    if job.name in crew.failed:
                        tell(f"{job.name}: failed")
                        continue
                    tell(f"{job.name}: {_headline(job)}{crew.seconds[job.name]:,.0f} s")
                    if job.verb == "distill":
                        _drop_weights(job, grid)
                        if problem := results.write(sparing=True):
                            tell(problem)
            finally:
                crew.stop()
                if problem := results.write():
                    crew.failed["results"] = problem
    return crew.failed


@dataclass(frozen=True)
class _Running:
    """A job at work."""

    job: Job
    process: Process
    share: Share
    began: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


class _Crew:
    """Processes at work, and the jobs that wait for one."""

    def __init__(self, work: Sequence[Job], out: Path, size: int, start: Start) -> None:
        self.waiting = [job for job in work if not job.done]
        self.cells = [job for job in work if job.verb == "distill"]
        self.done = sum(job.done for job in self.cells)
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.out, self.size, self.start = out, size, start
        self.threads = max(1, cores() // size)
        self.clock = Clock(out / DURATIONS)
        self.gpus = gpus()
        self.running: dict[str, _Running] = {}

    def finished(self, look: Callable[[], None]) -> Iterator[Job]:
        """Jobs as they end, well or not; new ones are begun in their place before anybody looks at them."""
        while True:
            over = [(each.job, code) for each in self.running.values() if (code := each.process.poll()) is not None]
            for job, code in over:
                self._ended(job, code)
            gone = [*(job for job, _ in over), *self._fill()]
            look()
            yield from gone
            if not self.running and not gone:
                return
            if not gone:
                time.sleep(_PAUSE)

    def _ended(self, job: Job, code: int) -> None:
        self.seconds[job.name] = self.running.pop(job.name).seconds
        self.clock.add(job, self.seconds[job.name], code)
        if job.done:  # what a process says when it leaves matters less than what it has left
            self.done += job.verb == "distill"
            return
        said = f"killed by signal {-code}" if code < 0 else _last_line(_log(job, self.out)) or f"exit code {code}"
        self.failed[job.name] = f"{said} (more in {_log(job, self.out)})"

    def _fill(self) -> list[Job]:
        """Begin jobs while there is room; returns those that cannot be begun."""
        lost: list[Job] = []
        looked_at: set[str] = set()
        while len(self.running) < self.size and (waiting := [job for job in self.waiting if job.name not in looked_at]):
            preparing = self._preparing()
            job = min(waiting, key=lambda job: _task(job) in preparing)  # the first, but for lessons it had to wait for
            looked_at.add(job.name)
            if job.after is not None and not (job.after / "teacher" / "config.json").exists():
                if f"teachers/{job.after.name}" in self.failed:
                    self._lose(job, f"teachers/{job.after.name} failed", lost)
                continue
            try:
                job.claim()
                share = Share(threads=self.threads, gpu=self._freest_gpu())
                self.running[job.name] = _Running(job, self.start(job, _log(job, self.out), share), share, time.monotonic())
                self.waiting.remove(job)
            except (ValueError, OSError) as error:
                self._lose(job, " ".join(str(error).split()), lost)
        return lost

    def _preparing(self) -> set[str]:
        """Tasks whose lessons a job may be building, which others of that task then wait for."""
        jobs = [each.job for each in self.running.values() if each.job.verb == "distill"]
        return {_task(job) for job in jobs if not (job.folder / "log.jsonl").exists()}

    def _freest_gpu(self) -> str | None:
        """One for each job, the one with fewest at work: a run by itself would spread over all that it sees."""
        at_work = [each.share.gpu for each in self.running.values()]
        return min(self.gpus, key=at_work.count) if len(self.gpus) > 1 else None

    def _lose(self, job: Job, why: str, lost: list[Job]) -> None:
        self.waiting.remove(job)
        self.failed[job.name] = why
        lost.append(job)

    def standing(self) -> Standing:
        """How far it is."""
        left = [self.clock.guess(job) for job in self.waiting]
        for each in self.running.values():
            whole = self.clock.guess(each.job)
            left.append(None if whole is None else max(0.0, whole - each.seconds))
        return Standing(
            done=self.done,
            total=len(self.cells),
            failed=sum(job.name in self.failed for job in self.cells),
            running=tuple(self.running),
            seconds_to_go=None if None in left else sum(filter(None, left)) / self.size,
        )

    def stop(self) -> None:
        """End whoever is at work."""
        for each in self.running.values():
            each.process.stop()
        for each in self.running.values():
            each.process.end()


def _task(job: Job) -> str:
    return job.name.partition("/")[0]


def _headline(job: Job) -> str:
    if job.verb == "teach":
        return ""
    metrics = read_json(job.folder / "metrics.json")
    name, scores = metrics["task"]["metrics"][0], next(iter(metrics["student"]["scores"].values()))
    return "" if scores.get(name) is None else f"{name} {100 * scores[name]:.1f}, "


def _drop_weights(job: Job, grid: GridConfig) -> None:
    if not grid.keep_students:
        for weights in (job.folder / "student").glob("model*.safetensors"):
            weights.unlink()


def _log(job: Job, out: Path) -> Path:
    return out / "logs" / f"{job.name}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def _stops_on_sigterm() -> Iterator[None]:
    """Whoever asks this process to end gets what Ctrl-C gets."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
