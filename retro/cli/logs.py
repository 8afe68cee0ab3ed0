"""Sets up the log of a command: our own progress, and warnings of the libraries."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Show our own log lines and the libraries' warnings, but neither advice on speed nor progress bars.

    Call it before the libraries are imported, since they read then whether bars are wanted.
    ``HF_HUB_DISABLE_PROGRESS_BARS=0`` shows the bars of loading and downloading.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.pop("MPLBACKEND", None)  # Jupyter's, which may not be installed here; our figures are files
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    first = os.environ.get("RANK", "0") == "0"  # all processes of a launch warn, but only one reports progress
    logging.getLogger("retro").setLevel(logging.INFO if first else logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a missing CPU kernel at each import
    warnings.filterwarnings("ignore", category=FutureWarning)
