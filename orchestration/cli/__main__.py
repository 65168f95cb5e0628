"""`python -m orchestration.cli` is the `boxseg` command."""

from orchestration.cli.app import main

main()
