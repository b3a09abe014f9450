"""`python -m egkd`, for launchers that want a module."""

from egkd.cli.main import main

main()
