"""What the process of one job does: `python -m egkd.experiments.work distill FOLDER`, whose `config.yaml` says what."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

PATIENCE = 20  # seconds in which to stop by itself


def main() -> None:
    """Run the job that the command line names. It ends when its standard input does: with whoever started it."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(do(sys.argv[1], Path(sys.argv[2])))


def do(verb: str, folder: Path) -> int:
    """Run the job of a folder; returns its exit code: 2 for a bad input, told in one line, 130 for an interruption."""
    try:
        from egkd import pipeline
        from egkd.cli.progress import calm
        from egkd.config import read_yaml, resolve

        calm()
        work = pipeline.teach if verb == "teach" else pipeline.distill
        work(resolve(read_yaml(folder / "config.yaml")), folder, tell=_say, progress=lambda what, done, total: None)
    except (ValueError, OSError) as error:
        if os.environ.get("EGKD_DEBUG"):
            raise
        print(" ".join(str(error).split()), flush=True)
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    return 0


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not through its buffer, whose lock would be asked for at exit
        pass
    signal.raise_signal(signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    main()
