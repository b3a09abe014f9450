"""`egkd`: the verbs together, and what becomes of errors."""

import os
import sys
from typing import Any

import typer

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
    help="Distil a fine-tuned classifier into a small student that gives the same answers for the same reasons.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verb in (demo, distill, explain, glue, submit, sweep, teach):
    app.command()(verb)
app.add_typer(lessons, name="lessons")


_INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__base__  # typer may carry a click of its own and names this class nowhere


def main() -> None:
    """Run the command line; a bad input is one line and exit code 2, an interruption says how to go on."""
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
        code = _refused(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print("\negkd: interrupted; the same command goes on where this one stopped", file=sys.stderr)
    sys.exit(code)


def _refused(message: str) -> int:
    print(f"egkd: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
