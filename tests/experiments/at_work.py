"""Jobs in processes that share one start of the interpreter: quick, and as mortal as others."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["egkd.pipeline"])


class Forked:
    """A job in a process; it kills itself before a training step where it is told to."""

    def __init__(self, job: Any, log: Path, share: Any, dies_at: int | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = _PROCESSES.Process(target=work, args=(job.verb, job.folder, log, dies_at))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def stop(self) -> None:
        self._process.terminate()

    def end(self) -> None:
        self._process.join()


def work(verb: str, folder: Path, log: Path, dies_at: int | None) -> None:
    """What the process does."""
    import torch
    import transformers

    from egkd.experiments.work import do

    torch.set_num_threads(1)
    said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    step = transformers.Trainer.training_step

    def mortal(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **named)

    transformers.Trainer.training_step = mortal
    os._exit(do(verb, folder))
