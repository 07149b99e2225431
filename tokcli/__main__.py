"""`python -m tokcli` is `tok`."""

from tokcli.cli import main

main()
