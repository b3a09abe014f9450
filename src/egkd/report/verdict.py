"""What a comparison comes to, in plain sentences computed from its figures."""

import math
from collections.abc import Sequence

from egkd.report.comparison import Column, headline, headline_fidelity, rank_agreement, students
from egkd.report.run import Estimate, Model, Run
from egkd.report.wording import SPACE, explainer, finite, listed, measure, number, percent, share, written


def verdict(run: Run) -> str:
    """What the student came to, in one sentence without its subject: what it keeps at what size and speed, and whether it
    decides and reasons as the teacher does."""
    kept = " ".join(clause for clause in (_kept(run), _cheaper(run)) if clause)
    alike = ", and ".join(clause for clause in (_decides(run.metrics.student), _reasons(run.metrics.student)) if clause)
    clauses = "; ".join(clause for clause in (kept, alike) if clause)
    return f"{clauses}." if clauses else "has no figures yet."


def _kept(run: Run) -> str:
    chosen = headline(run)
    if chosen is None:
        return ""
    split, name = chosen
    student, teacher = run.metrics.student.scores[split][name], run.metrics.teacher.scores.get(split, {}).get(name)
    if teacher is None:
        return f"has {measure(name).label} {written(name, student)}"
    values = f"{written(name, student)} against {written(name, teacher)}"
    if student is None or not finite(student) or not finite(teacher) or min(student, teacher) <= 0:
        return f"has {measure(name).label} {values}"
    verb = "keeps" if student <= teacher else "reaches"
    return f"{verb} {percent(student / teacher)} of the teacher’s {measure(name).label} ({values})"


def _cheaper(run: Run) -> str:
    student, teacher = run.metrics.student, run.metrics.teacher
    clauses = []
    if student.parameters and teacher.parameters:
        clauses.append(f"with {share(student.parameters / teacher.parameters)} of its parameters")
    both = sorted(student.latency.ms_per_example.keys() & teacher.latency.ms_per_example.keys())
    if both:
        slow, fast = teacher.latency.ms_per_example[both[0]], student.latency.ms_per_example[both[0]]
        if finite(slow) and finite(fast) and min(slow, fast) > 0:
            clauses.append(f"{number(slow / fast, 1)}{SPACE}times as fast")
    return ", ".join(clauses)


def _decides(student: Model) -> str:
    estimate = headline_fidelity(student, "agreement")
    return f"it gives the teacher’s answer on {percent(estimate.mean)} of the examples" if finite(estimate.mean) else ""


def _reasons(student: Model) -> str:
    ranks = {name: rank_agreement(student, name).mean for name in student.explanations}
    found = [f"{number(rank, 2)} ({explainer(name)})" for name, rank in ranks.items() if finite(rank)]
    return f"its ranking of the words correlates with the teacher’s at {listed(found)}" if found else ""


def differences(runs: Sequence[Run]) -> list[str]:
    """How each further student differs from the first, a sentence each."""
    models = students(runs)
    return [sentence for column in models[1:] if (sentence := _difference(models[0], column))]


def _difference(first: Column, other: Column) -> str:
    clauses = []
    chosen = headline(other.run)
    if chosen is not None:
        split, name = chosen
        old, new = (column.model.scores.get(split, {}).get(name) for column in (first, other))
        if old is not None and new is not None and finite(old) and finite(new):
            n = other.model.fidelity.get(split, {}).get("agreement", Estimate()).n
            clauses.append(f"{other.title} is {_step(name, old, new)} in {measure(name).label}{_doubt(name, old, new, n)}")
    ranks = {name: (rank_agreement(first.model, name), rank_agreement(other.model, name)) for name in other.model.explanations}
    changes = [_change(f"by {explainer(name)}", *pair) for name, pair in ranks.items() if all(finite(e.mean) for e in pair)]
    if changes:
        whose = "its explanation agreement" if clauses else f"the explanation agreement of {other.title}"
        clauses.append(f"{whose} is {listed(changes)}")
    return f"Compared with {first.title}, {'; '.join(clauses)}." if clauses else ""


def _step(name: str, old: float, new: float) -> str:
    text = f"{number(abs(100 * (new - old)), 1)} points" if measure(name).percent else number(abs(new - old))
    return "equal" if float(text.split()[0]) == 0 else f"{text} {'higher' if new > old else 'lower'}"


def _doubt(name: str, old: float, new: float, n: int | None) -> str:
    """Whether so few examples can tell two accuracies apart: two standard errors, as if of independent samples."""
    if name != "accuracy" or not n or new == old:
        return ""
    noise = 2 * math.sqrt(max(0.0, old * (1 - old) + new * (1 - new)) / n)
    return f", which {n} examples cannot tell from chance" if abs(new - old) <= noise else ""


def _change(how: str, old: Estimate, new: Estimate) -> str:
    """A change counts from two standard errors on, as if the means were of independent samples: a cautious bar."""
    assert old.mean is not None
    assert new.mean is not None
    clear = abs(new.mean - old.mean) > 2 * math.hypot(old.se or 0, new.se or 0)
    word = "higher" if new.mean > old.mean else "lower"
    return f"{word if clear else 'not clearly different'} {how} ({number(new.mean, 2)} against {number(old.mean, 2)})"
