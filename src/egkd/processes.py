"""Several processes at one job: who they are, how they wait for each other, what they take the mean of.

Shapes: B examples of this process, X whatever an example has.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

_T = TypeVar("_T")
_PATIENCE = timedelta(days=30)  # the others wait while the first trains a selector or compares, or for another run's build


class SaidElsewhere(ValueError):
    """The first process failed too, and says why."""


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
        """All processes leave together; where one failed, all fail.

        Raises what it met, in the first process ValueError with another's line, in the others SaidElsewhere where the first
        failed.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        told = self._everybodys(None if failed is None else f"{type(failed).__name__}: {failed}")
        if not self.first and told[0] is not None:
            raise SaidElsewhere(told[0]) from failed
        if failed is not None:
            raise failed
        for rank, problem in enumerate(told):
            if problem is not None:
                raise ValueError(f"process {rank} failed: {problem}")

    def once(self, do: Callable[[], _T]) -> _T:
        """What `do` returns in the first process, which alone does it while the others wait; where it fails, all fail."""
        found: Any = None
        with self.stage():
            if self.first:
                found = do()
        return self.told(found)

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
    if not several():
        yield Ranks()
        return
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Ranks(rank=distributed.get_rank(), count=distributed.get_world_size(), _group=group)
    finally:
        distributed.destroy_process_group(group)


def mean_count(counts_BX: Tensor) -> Tensor:
    """The mean over the examples of all processes, float [X]; at least 1 is counted in all.

    Every process has to call it, also one that has no examples.
    """
    total_X1 = torch.cat([counts_BX.sum(0).flatten(), counts_BX.new_tensor([len(counts_BX)])]).float()
    if several():
        distributed.all_reduce(total_X1)
    return (total_X1[:-1].clamp(min=1) / total_X1[-1].clamp(min=1)).view(counts_BX.shape[1:])


def several() -> bool:
    """Whether this process has others beside it."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
