"""Checkpoint folders: written completely or not at all, numbered by step, without pickles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from retro.config import ConfigError
from retro.layout import CHECKPOINT
from retro.models.tensors import read_tensors, write_tensors

OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
"""The numbers of a training, beside its tensors."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which then replaces whatever is at ``path``."""
    fresh, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def save_optimiser(optimiser: torch.optim.Optimizer, names: Mapping[str, torch.nn.Parameter], folder: Path) -> None:
    """Write the state of every parameter (moments and step count), keyed ``parameter|state``."""
    tensors = {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in names.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    write_tensors(tensors, folder / OPTIMISER_FILE)


def load_optimiser(optimiser: torch.optim.Optimizer, names: Mapping[str, torch.nn.Parameter], folder: Path) -> None:
    """The inverse of :func:`save_optimiser`.

    Raises:
        ConfigError: if the file's parameters are not the optimiser's.
        UnreadableError: if the file is damaged.
    """
    tensors = read_tensors(folder / OPTIMISER_FILE)
    for key, value in tensors.items():
        name, _, state = key.partition("|")
        if name not in names:
            raise ConfigError(
                f"{folder / OPTIMISER_FILE}: parameter {name!r} is not one of this run's; start the stage anew"
            )
        parameter = names[name]
        # a scalar is a step count, which torch keeps on the CPU
        optimiser.state[parameter][state] = value if value.ndim == 0 else value.to(parameter.device)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints in ``folder``, oldest first."""
    found = [(path.name.removeprefix(CHECKPOINT), path) for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir()]
    return sorted((int(number), path) for number, path in found if number.isdigit())


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the ``keep`` latest."""
    for _, path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)
