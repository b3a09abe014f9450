"""Progress bars and lines for people, on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def calm() -> None:
    """Keep the libraries underneath from talking over our own lines."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
