"""How long the jobs of an experiment took, and how long the others will."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egkd.experiments.planning import Job


class Clock:
    """How long jobs took, kept in a file, and what that says of others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spent: dict[str, float] = defaultdict(float)
        self._rates: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, cost
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self._learn(**json.loads(line))
                except (ValueError, TypeError):  # cut off when its writer was killed
                    continue

    def add(self, job: Job, seconds: float, code: int) -> None:
        """Remember a job that ended."""
        line: dict[str, Any] = {
            "name": job.name,
            "kinds": job.kinds,
            "seconds": round(seconds, 2),
            "cost": job.cost,
            "code": code,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._learn(**line)

    def _learn(self, name: str, kinds: Sequence[str], seconds: float, cost: float, code: int) -> None:
        self._spent[name] += seconds
        if code == 0:
            for kind in (*kinds, ""):
                self._rates[kind][0] += self._spent[name]
                self._rates[kind][1] += max(cost, 1.0)
            del self._spent[name]

    def guess(self, job: Job) -> float | None:
        """Seconds that a job will take, told from the most similar ones; None before any is finished."""
        known = next((self._rates[kind] for kind in (*job.kinds, "") if kind in self._rates), None)
        return None if known is None else known[0] / known[1] * max(job.cost, 1.0)
