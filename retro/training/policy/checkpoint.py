"""What the policy stage's checkpoints hold beside tensors: the numbers of a run after some steps.

``checkpoint-N/`` is the state after step N: the policy adapter in PEFT's own format, the value head of an algorithm
that has one, the optimiser's moments (safetensors: nothing here is unpickled) and ``state.json``. There is no generator
state to keep: every draw is seeded by its step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from retro.artifacts import write_json
from retro.reading import read_json
from retro.types import from_json

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The numbers of a run after ``step`` steps; its tensors lie beside them."""

    step: int = 0
    algorithm: Mapping[str, float] = field(default_factory=dict)
    """What the algorithm keeps from step to step."""
    best_step: int | None = None
    best_return: float | None = None
    """Of the guard: the highest mean true return on the validation contexts so far. None beside a ``best_step``: the
    guard could not choose it."""
    best_interval: tuple[float, float] | None = None
    """95 %, of ``best_return``, by bootstrap over the validation tasks. It leaves out that the highest of several
    measurements was chosen."""


def save_state(state: PolicyState, folder: Path) -> None:
    write_json(folder / STATE_FILE, asdict(state))


def is_current(folder: Path) -> bool:
    """Whether the checkpoint can be continued. One of an earlier version lacks what the algorithm keeps."""
    return "algorithm" in read_json(folder / STATE_FILE)


def load_state(folder: Path) -> PolicyState:
    """The inverse of :func:`save_state`; what an older version did not save has its default."""
    return from_json(PolicyState, read_json(folder / STATE_FILE))
