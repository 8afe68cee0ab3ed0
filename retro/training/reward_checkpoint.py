"""The reward model's checkpoints: safetensors and JSON, without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from retro.artifacts import write_json
from retro.models.tensors import read_tensors, write_tensors
from retro.reading import UnreadableError, read_json
from retro.training.checkpoints import STATE_FILE, load_optimiser, new_folder, prune, save_optimiser
from retro.types import from_json

PARAMETERS_FILE = "parameters.safetensors"
KEPT = 2


@dataclass(frozen=True, slots=True)
class RewardState:
    """The state of a training after ``step`` updates, saved beside its tensors."""

    step: int = 0
    best: tuple[float, float] | None = None
    """The highest quality on validation tasks so far, and its tie-breaker."""
    best_step: int | None = None


def save(
    path: Path,
    state: RewardState,
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer | None,
) -> None:
    """Write the folder ``path`` completely or not at all. With an optimiser, training can continue from it."""
    with new_folder(path) as folder:
        write_tensors(parameters, folder / PARAMETERS_FILE)
        if optimiser is not None:
            save_optimiser(optimiser, parameters, folder)
        write_json(folder / STATE_FILE, asdict(state))
    if optimiser is not None:
        prune(path.parent, KEPT)


def restore(
    path: Path, parameters: Mapping[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer | None
) -> RewardState:
    """The inverse of :func:`save`: fills the parameters (and the optimiser) in place.

    Raises:
        UnreadableError: if one of the files is missing or damaged.
    """
    tensors = read_tensors(path / PARAMETERS_FILE)
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise UnreadableError(f"{path / PARAMETERS_FILE}: {missing[0]} is missing; start the stage anew")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    if optimiser is not None:
        load_optimiser(optimiser, parameters, path)
    return from_json(RewardState, read_json(path / STATE_FILE))
