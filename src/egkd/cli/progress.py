"""Progress bars and lines for people, on the terminal."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from egkd.experiments.running import Standing

_WHAT = {
    "lessons": "the teacher teaches",
    "train": "training",
    "predict": "predictions",
    "explain": "explanations",
    "time": "timing",
}


class Bars:
    """One bar per kind of work, made when it is first heard of."""

    def __init__(self, progress: Progress) -> None:
        """`progress` draws."""
        self._progress = progress
        self._tasks: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what` is done; a finished bar is made anew if the work comes again."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(_WHAT.get(what, what), total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)  # type: ignore[arg-type]
        if done >= total:
            self._progress.refresh()
            del self._tasks[what]


def first_console() -> Console:
    """Where lines and bars go: the terminal, in the first of several processes alone. Lines are shown as they are."""
    return Console(quiet=os.environ.get("RANK", "0") != "0", markup=False, highlight=False)


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Progress bars while the work lasts."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


@contextmanager
def cells_bar(console: Console) -> Iterator["Callable[[Standing], None]"]:
    """One bar for the cells of an experiment: done, at work, failed, left, and the time to go."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("cells are checked", total=None)

        def show(now: "Standing") -> None:
            at_work = f"at work: {', '.join(now.running)}" if now.running else ""
            failed = f"{now.failed} failed" if now.failed else ""
            to_go = "" if now.seconds_to_go is None else f"{duration(now.seconds_to_go)} to go"
            said = ", ".join(part for part in (f"{now.left} left", failed, to_go, at_work) if part)
            progress.update(task, completed=now.done, total=now.total, description=said)

        yield show


def duration(seconds: float) -> str:
    """Hours and minutes, minutes, or seconds."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def calm() -> None:
    """Keep the libraries underneath from talking over our own lines."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)  # Trainer knows no other name
