"""What an experiment has found by now, as tables in its folder."""

import time
from pathlib import Path

from egkd.experiments.grid import GridConfig
from egkd.experiments.kept import finished, keep
from egkd.experiments.records import Record, read_record
from egkd.experiments.tables import write_results

_SHARE = 20  # cells have the computer for this many times as long as the tables


def records(grid: GridConfig, out: Path) -> list[Record]:
    """All finished cells of the experiment in `out`, in the order of the grid. Raises ValueError for a broken one."""
    found = (
        read_record(cell.folder(out), task=cell.task, student=cell.student, method=cell.method, seed=cell.seed)
        for cell in grid.cells()
        if finished(cell.folder(out))
    )
    return [record for record in found if record is not None]


class Results:
    """`results/` of an experiment: the finished cells whenever it is asked for, the tables made anew."""

    def __init__(self, grid: GridConfig, out: Path) -> None:
        """`grid` is everything that the experiment in `out` consists of."""
        self._grid, self._out, self._not_before = grid, out, 0.0

    def write(self, *, sparing: bool = False) -> str:
        """Make them from what is there; `sparing`: tables only if that takes no large share of the time.

        Returns what went wrong, in a line: hours of work shall not end with a table that cannot be made.
        """
        began = time.monotonic()
        try:
            found = records(self._grid, self._out)
            if not found:
                return ""
            keep(self._out)
            if not (sparing and began < self._not_before):
                settings = self._grid.model_dump(mode="json")
                write_results(found, self._out / "results", settings=settings, baseline=self._grid.baseline)
                self._not_before = time.monotonic() + _SHARE * (time.monotonic() - began)
        except Exception as error:
            return f"results could not be made: {' '.join(str(error).split()) or type(error).__name__}"
        return ""
