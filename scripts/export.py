"""`python scripts/export.py --config CONFIG [key.sub=value …]`."""

from retro.cli import stage_main

if __name__ == "__main__":
    stage_main("export")
