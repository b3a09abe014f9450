"""Commands one after the other in one process, as one of several: `commands.py JOBS OUT`, both JSON.

A job is the words of a command, and perhaps a function to fail in the first process: then nobody can write there.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from egkd.cli import main as cli


def full(*given: Any, **named: Any) -> None:
    raise OSError("No space left on device")


def run(words: list[str], failing: str | None) -> dict[str, Any]:
    """What a command said, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    broken = patch(failing, full) if failing and os.environ["RANK"] == "0" else contextlib.nullcontext()
    with patch.object(sys, "argv", ["egkd", *words]), patch.object(cli, "_LINGER", 0), broken:
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as left:
            return {"code": left.code, "out": out.getvalue(), "err": err.getvalue()}
    raise AssertionError("the command line always exits")


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(f"{sys.argv[2]}-{os.environ['RANK']}").write_text(json.dumps([run(job["words"], job.get("failing")) for job in jobs]))
