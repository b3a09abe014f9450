"""The seconds that a training took, however often it was interrupted."""

import json
import time
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Stopwatch(TrainerCallback, ExportableState):
    """Runs while a Trainer trains; its checkpoints remember what it showed, `Stopwatch(seconds_at(checkpoint))` goes on.

    What was computed after the last checkpoint and lost counts nowhere: the sum is what an uninterrupted training takes.
    """

    def __init__(self, before: float = 0.0) -> None:
        """`before`: the seconds that are over already."""
        self._before, self._started = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.perf_counter() - self._started

    def state(self) -> dict[str, dict[str, float]]:
        """What goes into a checkpoint."""
        return {"args": {"before": self.seconds}, "attributes": {}}


def seconds_at(checkpoint: Path) -> float:
    """What a checkpoint's stopwatch showed; 0 where it has none."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return float(state.get("stateful_callbacks", {}).get("Stopwatch", {}).get("args", {}).get("before", 0.0))
