"""Help is instant, which a test can only say by what it does not import, and shows an example for every verb."""

import subprocess
import sys

import pytest
import typer

from egkd.cli.main import app


def verbs(of: typer.Typer) -> list[str]:
    """What can be asked of it: its own verbs, and those of its groups as "group verb"."""
    own = [command.name or command.callback.__name__ for command in of.registered_commands if command.callback]
    return own + [
        f"{group.name} {verb}" for group in of.registered_groups if group.typer_instance for verb in verbs(group.typer_instance)
    ]


VERBS = verbs(app)
HEAVY = ["torch", "transformers", "datasets", "numpy", "pandas", "scipy"]
PROBE = f"""
import sys
sys.argv = ["egkd", *sys.argv[1:]]
from egkd.cli.main import main
try:
    main()
except SystemExit as left:
    assert left.code == 0, left.code
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""


def ask(*arguments: str) -> str:
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.stderr == ""
    return done.stdout


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    told = ask("--help")
    assert {"demo", "distill", "teach"} <= set(VERBS)
    assert [verb for verb in VERBS if verb.split()[0] not in told] == []
    assert told.splitlines()[-1].split() == ["LOADED"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_loads_nothing_heavy(verb: str) -> None:
    told = ask(*verb.split(), "--help")
    assert "Example" in told
    assert f"egkd {verb}" in told
    assert told.splitlines()[-1].split() == ["LOADED"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, egkd, egkd.config; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there() -> None:
    import egkd

    assert [name for name in egkd.__all__ if not callable(getattr(egkd, name))] == []
    assert dir(egkd) == sorted(egkd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        egkd.distil  # noqa: B018
