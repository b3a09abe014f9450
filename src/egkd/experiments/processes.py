"""Jobs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from egkd.experiments.planning import Job
from egkd.experiments.work import PATIENCE


class Process(Protocol):
    """A job at work."""

    def poll(self) -> int | None:
        """Its exit code, None while it works."""

    def stop(self) -> None:
        """Ask it to stop, without waiting."""

    def end(self) -> None:
        """Wait until it has stopped, not for ever."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a job may use of the machine."""

    threads: int
    gpu: str | None = None
    """As CUDA_VISIBLE_DEVICES names it; None: whatever there is."""


Start = Callable[[Job, Path, Share], Process]
"""Begins a job: what it says goes to the end of a file."""


class Subprocess:
    """A job in a fresh process of this interpreter, which ends with this one, whatever becomes of it."""

    def __init__(self, job: Job, log: Path, share: Share) -> None:
        """Begin `job`; what it says goes to the end of `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {name: str(share.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        if share.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = share.gpu
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "egkd.experiments.work", job.verb, str(job.folder)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C is this process's to hand on
            )

    def poll(self) -> int | None:
        """Its exit code, None while it works."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def end(self) -> None:
        """Wait until it has stopped; after a while it is killed."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.poll()


def cores() -> int:
    """How many this process may use, as OMP_NUM_THREADS or the system says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Those that this process sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
