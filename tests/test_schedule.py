"""When an objective is paid for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egkd.objectives.schedule import Schedule


def factors(schedule: Schedule, steps: int, phase: int = 0) -> list[float]:
    return [schedule.factor(step, steps, phase) for step in range(steps)]


def test_every_third_step_weighs_three_times_as_much() -> None:
    assert factors(Schedule(every=3), 7) == [3, 0, 0, 3, 0, 0, 3]
    assert factors(Schedule(every=3), 6, phase=1) == [0, 0, 3, 0, 0, 3]
    assert factors(Schedule(), 3) == [1, 1, 1]


def test_start_warmup_and_stop_in_steps_and_in_shares() -> None:
    assert factors(Schedule(start=2, warmup=3), 8) == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(Schedule(start=0.25, warmup=0.375), 8) == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(Schedule(stop=0.5), 4) == factors(Schedule(stop=2), 4) == [1, 1, 0, 0]
    assert factors(Schedule(start=1), 3) == [0, 1, 1]  # one step, not the whole of the training


def test_an_example_has_its_turn_whatever_batch_it_is_in() -> None:
    schedule, idx = Schedule(share=0.3), torch.arange(100)
    whole = schedule.rows(idx, epoch=2)
    parts = [schedule.rows(part, epoch=2) + start for start, part in zip((0, 40), idx.split([40, 60]), strict=True)]  # type: ignore[operator]
    assert whole is not None
    assert whole.tolist() == torch.cat(parts).tolist()
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    rows = schedule.rows(shuffled, epoch=2)
    assert rows is not None
    assert sorted(shuffled[rows].tolist()) == whole.tolist()
    assert Schedule().rows(idx, 0) is None


@given(st.sampled_from([2, 3, 4, 5, 8]), st.integers(0, 5))
def test_turns_go_round(parts: int, first: int) -> None:
    """Whatever epoch it starts with, everybody has had one turn after 1 / share epochs."""
    schedule, idx = Schedule(share=1 / parts), torch.arange(997)
    visits = torch.zeros(997, dtype=torch.long)
    for epoch in range(first, first + parts):
        rows = schedule.rows(idx, epoch)
        assert rows is not None
        assert abs(len(rows) - 997 / parts) < 3  # every epoch has its fair part
        visits[rows] += 1
    assert (visits == 1).float().mean() > 0.99  # the borders between turns are real numbers


def test_neighbours_have_turns_as_often_as_anybody() -> None:
    """Data sets are often sorted; a batch of neighbours must not be all or nothing."""
    for start in (0, 1000, 123_456):
        rows = Schedule(share=0.25).rows(torch.arange(start, start + 32), epoch=0)
        assert rows is not None
        assert 7 <= len(rows) <= 9


def test_the_strongest_are_chosen() -> None:
    schedule = Schedule(share=0.5, choose="strong")
    strong = schedule.strongest(torch.tensor([0.1, 3.0, 2.0, 0.2]))
    assert strong.tolist() == [False, True, True, False]
    rows = schedule.rows(torch.tensor([3, 2, 1]), 0, strong)
    assert rows is not None
    assert rows.tolist() == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"share": 0},
        {"share": 1.5},
        {"each": 2},
        {"instead": True},
        {"instead": True, "share": 0.5, "choose": "strong"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Schedule(**wrong)  # type: ignore[arg-type]
