"""How many threads torch computes with on a CPU."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from retro.config import CheckpointSection, RunConfig

logger = logging.getLogger(__name__)

TINY_BYTES = 2**26
"""Weights of a model whose products are too small to share: 16 million parameters in float32."""
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def limit_threads(config: RunConfig, device: torch.device) -> None:
    """Compute with one thread, for this process, where all models of a run are tiny.

    Torch's threads wait for one another by spinning after each of the many small products; on a core that other work
    uses too, each wait lasts as long as the other's time slice. A user who set ``OMP_NUM_THREADS`` has chosen, and a
    model whose size is not known here (a name of a hub) counts as large.
    """
    if device.type != "cpu" or any(name in os.environ for name in CHOSEN_BY) or torch.get_num_threads() == 1:
        return
    models = [config.model.base, *([config.actor.checkpoint] if isinstance(config.actor, CheckpointSection) else [])]
    if all(0 < _weight_bytes(Path(model)) <= TINY_BYTES for model in models):
        logger.info("models this small are computed with one thread; OMP_NUM_THREADS=N sets another number")
        torch.set_num_threads(1)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
