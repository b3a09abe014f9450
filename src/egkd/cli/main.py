"""`egkd`: the verbs together, and what becomes of errors."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import typer

from egkd.cli.augment import augment
from egkd.cli.demo import demo
from egkd.cli.distill import distill
from egkd.cli.explain import explain
from egkd.cli.glue import glue
from egkd.cli.lessons import app as lessons
from egkd.cli.submit import submit
from egkd.cli.sweep import sweep
from egkd.cli.teach import teach

app = typer.Typer(
    name="egkd",
    help="Distil a fine-tuned classifier into a small student that gives the same answers for more of the same reasons.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verb in (augment, demo, distill, explain, glue, submit, sweep, teach):
    app.command()(verb)
app.add_typer(lessons, name="lessons")


_BAD_INPUT, _INTERRUPTED = 2, 130
_LINGER = 5  # seconds: when one process leaves, launchers end the others, who may not have spoken yet
_UsageError: Any = typer.BadParameter.__base__  # typer may carry a click of its own and names this class nowhere


def main() -> None:
    """Run the command line; a bad input is one line and exit code 2, an interruption says how to go on."""
    _share_or_leave(sys.argv[1:])
    try:
        code = app(standalone_mode=False) or 0
    except _UsageError as error:
        message = error.format_message()
        if "\n" in message:  # no verb was named, and this is the help
            error.show()
        code = _refused(message) if message and "\n" not in message else error.exit_code
    except (ValueError, OSError) as error:
        if os.environ.get("EGKD_DEBUG"):
            raise
        code = _refused(str(error), said=type(error).__name__ == "SaidElsewhere")  # whose module loads torch
    except RuntimeError as error:
        if "home directory" not in str(error):  # pathlib's own, about ~somebody
            raise
        code = _refused("a path begins with ~ and the name of nobody who has a home here; write it out")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print("\negkd: interrupted; the same command goes on where this one stopped", file=sys.stderr)
    sys.exit(code)


def _share_or_leave(words: Sequence[str]) -> None:
    """Of several processes that were started for a verb whose work they cannot share, the first does it and forgets the others,
    who leave."""
    if (
        int(os.environ.get("WORLD_SIZE", "1")) == 1
        or words[:1] in (["distill"], ["teach"])
        or words[:2] == ["lessons", "build"]
    ):
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def _refused(message: str, *, said: bool = False) -> int:
    """Say why, unless that is `said` already. Of processes that do not know of each other yet a machine's first one says it."""
    alone = "torch" not in sys.modules or not sys.modules["torch"].distributed.is_initialized()
    if said or (alone and os.environ.get("LOCAL_RANK", "0") != "0"):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(_BAD_INPUT))
        time.sleep(_LINGER)
    else:
        print(f"egkd: {' '.join(message.split())}", file=sys.stderr)
    return _BAD_INPUT


if __name__ == "__main__":
    main()
