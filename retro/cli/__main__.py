"""``python -m retro.cli`` is ``retro``."""

from retro.cli import main

main()
