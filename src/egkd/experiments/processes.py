"""Jobs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
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


Start = Callable[[Job, Path, int], Process]
"""Begins a job: what it says goes to the end of a file, it takes so many threads."""


class Subprocess:
    """A job in a fresh process of this interpreter, which ends with this one, whatever becomes of it."""

    def __init__(self, job: Job, log: Path, threads: int) -> None:
        """Begin `job`; what it says goes to the end of `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
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
