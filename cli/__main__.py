"""`python -m tokcarve.cli`, for where the `tokcarve` command is not on the path."""

from tokcarve.cli.main import main

main()
