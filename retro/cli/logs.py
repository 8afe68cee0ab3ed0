"""What a command says on standard error: our own progress, and of the libraries what has gone wrong."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Our own log lines as they are; of the libraries, warnings, but not their advice on speed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("retro").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a missing CPU kernel wherever it is imported
    warnings.filterwarnings("ignore", category=FutureWarning)
