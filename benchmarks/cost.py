"""What explanation guidance costs per step, and what each strategy buys.

    python benchmarks/cost.py --glue-dir GLUE --teacher-init gte-small --student paraphrase-MiniLM-L3-v2 \
        --tasks sst2,mrpc --out runs/cost --json benchmarks/results/cost.json

Timing: every strategy, through `DistillationTrainer` with lessons on disk, beside bare PyTorch loops (plain distillation with
cached logits, with a live teacher, and AD-KD, whose code takes the gradients of both models at each step) on the same batches,
in turns, one process; memory in a fresh process each; building lessons beside the teacher's bare forward pass. What it buys:
students of one budget, several seeds, through `egkd.pipeline.distill`, judged on the same rows. Either half goes on where
it was killed, and results are written as they come. `agreement` is the mean Spearman correlation of both models' word scores by
occlusion; `agreement_gain_kept` the share of what the family's exact strategy gains over plain distillation.

`--strategies` takes names as the table prints them ("gradient: exact", "2 of 4,gathered") or parts of them ("selection").
`--quick` takes tiny random models and sentences, so its figures mean nothing.
"""

import argparse
import gc
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cost_gains import Judge, known_cell, make_cell
from cost_loops import LOOPS, Work
from cost_results import markdown, rows_of
from cost_setting import Setting, Strategy, quiet, taught, toy
from cost_turns import contestants, in_turns, lesson_contestants, memory, timing_file

from egkd.checks import objectives_of
from egkd.runs import write_json, write_text

ALWAYS: dict[str, Any] = {"schedule": {}}
THIRD: dict[str, Any] = {"schedule": {"share": 1 / 3}}
FOURTH: dict[str, Any] = {"schedule": {"every": 4}}
FIFTH: dict[str, Any] = {"schedule": {"every": 5}}
TENTH: dict[str, Any] = {"schedule": {"every": 10}}
HALF: dict[str, Any] = {"schedule": {"share": 0.5, "instead": True}}
QUARTER: dict[str, Any] = {"schedule": {"share": 0.25, "instead": True}}
EXACT = {"strategy": "exact"} | ALWAYS
DIFFERENCE = {"strategy": "finite-difference"} | ALWAYS
PROJECTION = {"strategy": "projection", "attribution": "input-x-gradient"} | ALWAYS
MASKS = {"masks": 4, "masks_per_step": 4, "operator": "mask"} | ALWAYS
HEAVY = {"masks_per_step": 1, "weight": 3.0}
WORDS = MASKS | {"operator": "replace", "weight": 3.0}
WHOLE = {"operator": "mask"} | ALWAYS
GATHER = {"operator": "gather"} | ALWAYS

STRATEGIES = (
    Strategy("plain", "plain"),
    Strategy("gradient", "exact", {"gradient": EXACT}, exact=True),
    Strategy("gradient", "exact, every 5th step", {"gradient": EXACT | FIFTH}),
    Strategy("gradient", "exact, a third", {"gradient": EXACT | THIRD}),
    Strategy("gradient", "difference, every 5th step", {"gradient": DIFFERENCE | FIFTH}),
    Strategy("gradient", "projection, every 5th step", {"gradient": PROJECTION | FIFTH}),
    Strategy("perturbation", "4 of 4", {"perturbation": MASKS}, exact=True),
    Strategy("perturbation", "2 of 4, every 5th step", {"perturbation": MASKS | {"masks_per_step": 2} | FIFTH}),
    Strategy("perturbation", "1 of 4, every 4th step", {"perturbation": MASKS | {"masks_per_step": 1} | FOURTH}),
    Strategy("perturbation", "1 of 4, every 4th step, weight 3", {"perturbation": MASKS | HEAVY | FOURTH}),
    Strategy("perturbation", "1 of 4, instead of half", {"perturbation": MASKS | {"masks_per_step": 1} | HALF}),
    Strategy("perturbation", "1 of 4, instead of half, weight 3", {"perturbation": MASKS | HEAVY | HALF}),
    Strategy("perturbation", "LIME's scores, every 10th step", {"perturbation": MASKS | {"match": "coefficients"} | TENTH}),
    Strategy("perturbation", "other words, 2 of 4", {"perturbation": WORDS | {"masks_per_step": 2}}),
    Strategy("perturbation", "other words, instead of half", {"perturbation": WORDS | {"masks_per_step": 1} | HALF}),
    Strategy("selection", "whole length", {"selection": WHOLE}, exact=True),
    Strategy("selection", "whole length, every 4th step", {"selection": WHOLE | FOURTH}),
    Strategy("selection", "whole length, instead of a quarter", {"selection": WHOLE | QUARTER}),
    Strategy("selection", "gathered, every 4th step", {"selection": GATHER | FOURTH}),
    Strategy("all three", "exact", {"gradient": EXACT, "perturbation": MASKS, "selection": WHOLE}, exact=True),
    Strategy("all three", "defaults", {"gradient": {}, "perturbation": {}, "selection": {}}),
    Strategy("published", "ad-kd", preset="ad-kd"),
)
"""What is compared, settings beside which nothing but weights and distances is a default. A row of the same settings as another
is trained and timed once."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is spent on a task unless flags say otherwise."""

    rows: int | None
    epochs: float
    teacher_rows: int | None
    teacher_epochs: float


BUDGETS = {
    "sst2": Budget(rows=5000, epochs=2, teacher_rows=8000, teacher_epochs=2),
    "mrpc": Budget(rows=None, epochs=3, teacher_rows=None, teacher_epochs=3),
}
OTHERS = Budget(rows=5000, epochs=2, teacher_rows=8000, teacher_epochs=2)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what the flags ask for; returns the rows of the JSON file."""
    options = read_options(arguments)
    quiet()
    gc.freeze()  # what is imported need not be looked through whenever a run is over
    chosen = choose(options.strategies)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        settings = [toy(out, options.device, options.bf16)] if options.quick else _settings(options)
        for setting in settings:
            done = list(rows)

            def report(setting: Setting = setting, done: list[dict[str, Any]] = done) -> list[dict[str, Any]]:
                rows = done + rows_of(setting, work_of(options, setting, chosen), chosen, options.seeds, defaults(setting))
                for file in (out / "cost.json", *([options.json] if options.json else [])):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, rows)
                write_text(out / "cost.md", markdown(rows))
                return rows

            if options.timing:
                time_all(options, setting, chosen)
                report()
            if options.gains:
                judge = Judge(setting)
                for seed in options.seeds:
                    for strategy in chosen:
                        if known_cell(setting, strategy, seed) is None:
                            make_cell(setting, strategy, seed, judge)
                            report()
            rows = report()
        print((out / "cost.md").read_text())
    return rows


def choose(wanted: Sequence[str]) -> list[Strategy]:
    """The strategies called so, always with plain distillation and the exact ones of their families; all where none is named.

    Raises ValueError for what names none.
    """
    named = {strategy.title for part in wanted for strategy in _called(part)} or {strategy.title for strategy in STRATEGIES}
    families = {strategy.family for strategy in STRATEGIES if strategy.title in named}
    return [s for s in STRATEGIES if s.title in named or s.family == "plain" or (s.exact and s.family in families)]


def _called(part: str) -> list[Strategy]:
    """Those of this very name, with or without its family, else those in whose names it is."""
    found = [s for s in STRATEGIES if part in (s.name, s.title)] or [s for s in STRATEGIES if part in s.title]
    if not found:
        raise ValueError(f"no strategy is called {part!r}; known are {', '.join(s.title for s in STRATEGIES)}")
    return found


def defaults(setting: Setting) -> set[str]:
    """Keys of the settings that `egkd distill` has by default, for each family and all three."""
    families = ("gradient", "perturbation", "selection")
    groups = [*([family] for family in families), list(families)]
    return {setting.key(Strategy("", "", {family: {} for family in group})) for group in groups}


def work_of(options: argparse.Namespace, setting: Setting, strategies: Sequence[Strategy]) -> Work:
    """What time is taken on: as many steps as make every schedule come round whole times, unless figures mean nothing."""
    every = [1] if options.quick else [o.schedule.every for s in strategies for o in objectives_of(setting.config(s))]
    counted = math.ceil(options.steps / math.lcm(*every)) * math.lcm(*every)
    return Work(setting=setting, drawn=counted + options.skip, steps=counted + options.skip, skip=options.skip)


def time_all(options: argparse.Namespace, setting: Setting, strategies: Sequence[Strategy]) -> None:
    """The half that measures cost, into files of the setting's folder."""
    setting.out.mkdir(parents=True, exist_ok=True)
    work = work_of(options, setting, strategies)

    def tell(line: str) -> None:
        print(f"{setting.task}: {line}", flush=True)

    plain = work.setting.key(STRATEGIES[0])
    in_turns(timing_file(work), contestants(work, strategies), [*LOOPS, plain], options.rounds, tell)
    lessons = replace(work, drawn=options.lesson_batches)
    in_turns(timing_file(lessons, "lessons"), lesson_contestants(lessons), [], options.rounds, tell)
    memory(work, strategies, timing_file(work, "memory").with_suffix(".json"), tell)


def _settings(options: argparse.Namespace) -> list[Setting]:
    """Tasks with their teachers, which are fine-tuned where none is given."""
    found = []
    for task in options.tasks:
        budget, data = BUDGETS.get(task, OTHERS), {"task": task, "glue_dir": options.glue_dir}
        teacher_limit = options.teacher_limit or budget.teacher_rows
        teacher = options.teacher.get(task) or options.teacher.get("")
        if teacher is None:
            if options.teacher_init is None:
                raise ValueError(f"no teacher for {task}: give --teacher {task}=FOLDER or --teacher-init")
            epochs, folder = options.teacher_epochs or budget.teacher_epochs, options.out / task / "teacher"
            teacher = taught(data, options.teacher_init, folder, limit=teacher_limit, epochs=epochs)
        found.append(
            Setting(
                task=task,
                data=data,
                teacher=teacher,
                student=options.student,
                out=options.out / task,
                train_limit=options.train_limit or budget.rows,
                teacher_limit=teacher_limit,
                epochs=options.epochs or budget.epochs,
                explained=options.explained,
                device=options.device,
                bf16=options.bf16,
                learning_rate=options.learning_rate,
            )
        )
    return found


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    listed = lambda text: re.split(r",(?! )", text)  # noqa: E731 names have commas before spaces
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny random models and sentences: under a minute")
    parser.add_argument("--glue-dir", type=Path)
    parser.add_argument("--tasks", type=listed, default=["sst2", "mrpc"])
    parser.add_argument("--teacher", action="append", default=[], help="fine-tuned: sst2=FOLDER, once per task, or one FOLDER")
    parser.add_argument("--teacher-init", help="instead: an encoder to fine-tune")
    parser.add_argument("--student")
    parser.add_argument("--out", type=Path, help="folder for everything; needed but with --quick")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--strategies", type=listed, default=[], help="names, or parts of names, as the table has them")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")])
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument("--no-timing", dest="timing", action="store_false")
    halves.add_argument("--timing-only", dest="gains", action="store_false")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--learning-rate", type=float, help="of the students")
    parser.add_argument("--teacher-limit", type=int, help="rows the teacher was or will be trained on")
    parser.add_argument("--teacher-epochs", type=float)
    parser.add_argument("--explained", type=int, default=300, help="evaluation rows on which explanations are compared")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="counted steps in a round")
    parser.add_argument("--lesson-batches", type=int, help="batches whose lessons are built on the clock")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    options = parser.parse_args(arguments)
    if not options.quick and (options.out is None or options.student is None):
        parser.error("--out and --student are needed (but with --quick)")
    options.teacher = dict(part.split("=", 1) if "=" in part else ("", part) for part in options.teacher)
    options.skip = 1 if options.quick else 4
    options.seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    options.rounds = options.rounds or (1 if options.quick else 7)
    options.steps = options.steps or (3 if options.quick else 40)
    options.lesson_batches = options.lesson_batches or (4 if options.quick else 64)
    return options


if __name__ == "__main__":
    main()
