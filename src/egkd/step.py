"""One training step: who is paid for now, what the student is observed on, and what every objective says of it.

Shapes: B batch, C classes, P perturbed copies, N examples of the data set.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from egkd.lessons import Lessons
from egkd.models import Seen, observe
from egkd.objectives.base import Lesson, Moment, Objective
from egkd.processes import mean_count
from egkd.text import Batch, pack

CLOSE = 0.75  # batches at most so much shorter than another go through the model together with it


Look = tuple[tuple[int, ...] | None, bool]
"""Which examples somebody looks into (places in the batch, None for all), and whether without dropout."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An objective that is paid for at this step: its factor, the examples it is paid for, and their lesson."""

    objective: Objective
    factor: float
    rows_R: Tensor | None
    """Places of its examples in the batch; None for all."""
    batch: Batch
    lesson: Lesson
    moment: Moment


def learn(
    model: nn.Module,
    objectives: Sequence[Objective],
    batch: Batch,
    lessons: Mapping[str, Lesson],
    moment: Moment,
    *,
    steps: int,
    pad_token_id: int,
    heads: Mapping[str, nn.Module] | None = None,
    strong: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Every objective's term of the loss of one step (0 where it is not paid for), and the student's logits [B, C], 0 for
    texts of which it saw perturbed copies alone.

    A term is weight * factor * (the sum over its examples) / (how many these are in expectation): what it is in expectation
    over all examples. Of several teachers (see `Objective.of_teacher`) it is the sum over them. Lessons, heads and `strong` go
    by `Objective.key`.
    """
    factors = factors_of(objectives, moment.step, steps)
    rest_R, rest = _as_they_are(objectives, factors, batch, moment.epoch)
    turns = list(_turns(objectives, factors, batch, rest_R, lessons, moment, heads or {}, strong or {}))
    copies = [turn.objective.copies(turn.batch, turn.lesson, turn.moment) for turn in turns]
    plain, seen, views = _observe(model, batch, rest_R, turns, copies, pad_token_id)
    idle = 0.0 * plain.sum()  # a step on which nobody is paid for is a step all the same
    terms = {objective.name: idle for objective in objectives}
    for turn, own, view in zip(turns, seen, views, strict=True):
        losses_R = turn.objective.learn(own, view, turn.batch, turn.lesson, turn.moment)
        schedule = turn.objective.schedule
        count = len(plain) * schedule.share * (1.0 if schedule.instead else rest)
        term = turn.objective.weight * turn.factor * losses_R.sum() / count
        terms[turn.objective.name] = terms[turn.objective.name] + term
    return terms, plain


def factors_of(objectives: Sequence[Objective], step: int, steps: int) -> dict[str, float]:
    """By what each weight is multiplied at this step, by name. Those that are paid for as often take turns, and so do those
    whose copies stand in the place of texts, of which a step has room for one."""
    schedules = {objective.name: objective.schedule for objective in objectives}  # those of several teachers are one
    standing = sum(schedule.instead for schedule in schedules.values())
    phases: Counter[int] = Counter()
    found = {}
    for name, schedule in schedules.items():
        kind = 0 if schedule.instead else schedule.every
        found[name] = schedule.factor(step, steps, phases[kind], standing if schedule.instead else 1)
        phases[kind] += 1
    return found


def _as_they_are(
    objectives: Sequence[Objective], factors: Mapping[str, float], batch: Batch, epoch: int
) -> tuple[Tensor | None, float]:
    """Places of the texts that the student sees as they are, None for all, and which share of a batch they are in expectation.

    At one step only one objective, perhaps of several teachers, has copies in their place, see `factors_of`.
    """
    for objective in objectives:
        if objective.schedule.instead and factors[objective.name] > 0:
            apart_R = objective.schedule.rows(batch["idx"], epoch)
            whole_B = torch.ones_like(batch["idx"], dtype=torch.bool)
            whole_B[apart_R] = False
            return whole_B.nonzero()[:, 0], 1.0 - objective.schedule.share
    return None, 1.0


def _turns(
    objectives: Sequence[Objective],
    factors: Mapping[str, float],
    batch: Batch,
    rest_R: Tensor | None,
    lessons: Mapping[str, Lesson],
    moment: Moment,
    heads: Mapping[str, nn.Module],
    strong: Mapping[str, Tensor],
) -> Iterator[Turn]:
    for objective in objectives:
        factor = factors[objective.name]
        if factor == 0:
            continue
        lesson = lessons.get(objective.key, {})
        rows_R = rest_R
        if objective.schedule.share < 1:
            rows_R = objective.schedule.rows(batch["idx"], moment.epoch, strong.get(objective.key))
        lesson = lesson if rows_R is None else _rows(lesson, rows_R)
        counts = objective.counts(lesson)
        count = None if counts is None else mean_count(counts)  # before anybody leaves for having no example
        if rows_R is not None and len(rows_R) == 0:
            continue
        head = heads.get(objective.name if objective.keeps_head else objective.key)
        yield Turn(
            objective=objective,
            factor=factor,
            rows_R=rows_R,
            batch=batch if rows_R is None else _rows(batch, rows_R),
            lesson=lesson,
            moment=replace(moment, head=head, count=count),
        )


def strongest(objectives: Sequence[Objective], lessons: Mapping[str, Lessons]) -> dict[str, Tensor]:
    """For objectives that are paid for where the teacher's explanation is strong: which examples those are."""
    chosen = {}
    for objective in objectives:
        schedule = objective.schedule
        if schedule.choose == "strong" and schedule.share < 1:
            store = lessons.get(objective.key)
            if store is None or "strength" not in store.fields:
                raise ValueError(
                    f"objectives.{objective.name}.schedule.choose: it cannot tell strong explanations; use 'random'"
                )
            chosen[objective.key] = schedule.strongest(store.read(range(len(store)), fields=["strength"])["strength"])
    return chosen


def _rows(values: Mapping[str, Tensor], rows_R: Tensor) -> dict[str, Tensor]:
    return {name: value[rows_R.to(value.device)] for name, value in values.items()}


def _observe(
    model: nn.Module,
    batch: Batch,
    rest_R: Tensor | None,
    turns: Sequence[Turn],
    copies: Sequence[Sequence[Batch]],
    pad_token_id: int,
) -> tuple[Tensor, list[Seen], list[list[Seen]]]:
    """The logits of the texts as they are, what each turn sees of its own examples, and what it sees of its copies.

    Examples that somebody looks into (embeddings, hidden states) make a pass of their own, shared by all who look into
    the same; the others go through the model together with all copies of about their length. Who looks without dropout says
    nothing of how the student answers in training.
    """
    looks: dict[Look, list[Turn]] = {}
    for turn in turns:
        if turn.objective.needs:
            looks.setdefault(_look_of(turn), []).append(turn)
    looked_at = {look: _look(model, group) for look, group in looks.items()}
    size = len(batch["input_ids"])
    whole = list(range(size)) if rest_R is None else rest_R.tolist()
    moving = [rows for rows, still in looks if not still]
    largest = max(moving, key=lambda rows: size if rows is None else len(rows), default=())
    inside = whole if largest is None else list(largest)
    outside = sorted(set(whole) - set(inside))
    device = batch["input_ids"].device
    rest = [_rows(batch, torch.tensor(outside, device=device)) if len(outside) < size else batch] if outside else []
    found = _packed(model, [*rest, *(copy for own in copies for copy in own)], pad_token_id)
    parts = [*([looked_at[largest, False].logits_BC] if inside else []), *found[: len(rest)]]
    logits_BC = parts[0] if len(parts) == 1 and rest_R is None else _in_place(parts or found, inside + outside, size)
    seen = []
    for turn in turns:
        if turn.objective.needs:
            seen.append(looked_at[_look_of(turn)])
        else:
            seen.append(Seen(logits_BC=logits_BC if turn.rows_R is None else logits_BC[turn.rows_R]))
    views = iter(found[len(rest) :])
    return logits_BC, seen, [[Seen(logits_BC=next(views)) for _ in own] for own in copies]


def _in_place(parts: Sequence[Tensor], places: Sequence[int], size: int) -> Tensor:
    """Rows of all `parts` together in these places of a tensor of `size` rows, the others 0."""
    rows_RC = torch.cat(list(parts))[: len(places)]
    return rows_RC.new_zeros(size, rows_RC.shape[1]).index_copy(
        0, torch.tensor(places, device=rows_RC.device, dtype=torch.long), rows_RC
    )


def _look_of(turn: Turn) -> Look:
    return None if turn.rows_R is None else tuple(turn.rows_R.tolist()), turn.objective.looks_still


def _look(model: nn.Module, group: Sequence[Turn]) -> Seen:
    """One pass for objectives that look into the same examples."""
    needs = {name for turn in group for name in turn.objective.needs}
    twice = any(turn.objective.differentiates_twice for turn in group)
    return observe(model, group[0].batch, differentiable=twice, keep=needs, still=group[0].objective.looks_still)


def _packed(model: nn.Module, batches: Sequence[Batch], pad_token_id: int) -> list[Tensor]:
    """The logits of every batch, those of about equal length from one pass."""
    found: list[Tensor] = [torch.empty(0)] * len(batches)
    left = sorted(range(len(batches)), key=lambda place: -batches[place]["input_ids"].shape[1])
    while left:
        longest = batches[left[0]]["input_ids"].shape[1]
        together = [place for place in left if batches[place]["input_ids"].shape[1] >= CLOSE * longest]
        left = left[len(together) :]
        packed = batches[together[0]] if len(together) == 1 else pack([batches[place] for place in together], pad_token_id)
        logits_PC = observe(model, packed).logits_BC
        for place, part_PC in zip(together, logits_PC.split([len(batches[p]["input_ids"]) for p in together]), strict=True):
            found[place] = part_PC
    return found
