"""`egkd`: the verbs together, and what becomes of errors."""

import os
import sys

import typer

from egkd.cli.demo import demo
from egkd.cli.distill import distill
from egkd.cli.teach import teach

app = typer.Typer(
    name="egkd",
    help="Distil a fine-tuned classifier into a small student that gives the same answers for the same reasons.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verb in (demo, distill, teach):
    app.command()(verb)


def main() -> None:
    """Run the command line; a bad input is one line and exit code 2, an interruption says how to go on."""
    try:
        app()
    except ValueError as error:
        if os.environ.get("EGKD_DEBUG"):
            raise
        print(f"egkd: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\negkd: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
