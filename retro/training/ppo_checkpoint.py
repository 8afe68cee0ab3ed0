"""What PPO's checkpoints hold: a plain adapter folder, with all that an exact resume needs beside it.

``checkpoint-N/`` is the state after N updates: the policy adapter in PEFT's own format, the value head, the optimiser's
moments (safetensors: nothing here is unpickled) and ``state.json``. There is no generator state to keep: every draw is
seeded by its step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from retro.artifacts import write_json
from retro.reading import read_json

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True)
class PpoState:
    """The numbers of a run after ``step`` updates; its tensors lie beside them."""

    step: int
    kl_coefficient: float
    score_mean: float
    score_std: float
    """The frozen standardisation of the reward model's scores."""
    best_step: int | None = None
    best_return: float | None = None
    """Of the guard: the highest mean true return on the validation contexts so far. None beside a ``best_step``: the
    guard could not choose it."""
    best_interval: tuple[float, float] | None = None
    """95 %, of ``best_return``, by bootstrap over the validation tasks. It leaves out that the highest of several
    measurements was chosen."""


def save_state(state: PpoState, folder: Path) -> None:
    write_json(folder / STATE_FILE, asdict(state))


def load_state(folder: Path) -> PpoState:
    """The inverse of :func:`save_state`; what an older version did not save has its default."""
    values = read_json(folder / STATE_FILE)
    low_high = values.pop("best_interval", None)
    return PpoState(**values, best_interval=None if low_high is None else (low_high[0], low_high[1]))
