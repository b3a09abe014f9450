"""Several processes that build together: who they are, and how they wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

_T = TypeVar("_T")
_PATIENCE = timedelta(days=30)  # the others wait while the first trains a selector, or for another run's build


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that `torch.distributed` knows; alone where it was not started."""

    rank: int = 0
    count: int = 1
    _group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    @contextmanager
    def stage(self) -> Iterator[None]:
        """All processes leave together; where one failed, all fail. Raises what it met, or ValueError with the other's line."""
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        told = self._everybodys(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, problem in enumerate(told):
            if problem is not None:
                raise ValueError(f"process {rank} could not build lessons: {problem}")

    def told(self, value: _T) -> _T:
        """What the first process says."""
        return self._everybodys(value)[0]

    def _everybodys(self, value: _T) -> list[_T]:
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value, group=self._group)
        return values


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process and the others, in a group that waits as long as it takes, whatever backend the training uses."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        yield Ranks()
        return
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Ranks(rank=distributed.get_rank(), count=distributed.get_world_size(), _group=group)
    finally:
        distributed.destroy_process_group(group)
