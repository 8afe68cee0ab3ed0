"""What a command says on standard error: our own progress, and of the libraries what has gone wrong."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Our own log lines as they are; of the libraries, warnings, but neither advice on speed nor progress bars.

    To be called before the libraries are imported. ``HF_HUB_DISABLE_PROGRESS_BARS=0`` brings the bars of loading and
    downloading back.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    first = os.environ.get("RANK", "0") == "0"  # of a launch's processes, which all warn, one tells how it goes
    logging.getLogger("retro").setLevel(logging.INFO if first else logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a missing CPU kernel wherever it is imported
    warnings.filterwarnings("ignore", category=FutureWarning)
