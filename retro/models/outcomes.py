"""The outcomes of self-tests in the user's cache folder, one for each base, device and version of this code."""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from retro.artifacts import write_json
from retro.layout import cache_folder
from retro.models.bases import Use
from retro.reading import read_json
from retro.types import from_json

logger = logging.getLogger(__name__)

Outcome = dict[Use, str | None]
"""For each use of a base, why it cannot share prompts, or None."""


def outcome_file(model: PreTrainedModel, purpose: str) -> Path:
    """The file for the outcome of a test.

    Args:
        purpose: what else the test depends on: the use of the base, and its adapters.
    """
    return cache_folder() / "exactness" / f"{_fingerprint(model, purpose)}.json"


def read_outcome(path: Path) -> Outcome | None:
    """The outcome of an earlier test; None if there is none or it cannot be read."""
    try:
        return from_json(Outcome, read_json(path))
    except (OSError, ValueError):  # missing or damaged: the test is made again
        return None


def keep_outcome(path: Path, outcome: Outcome) -> None:
    """Write an outcome. If the folder cannot be written to, the test is made at each start."""
    try:
        write_json(path, outcome)
    except OSError as error:
        logger.info("the outcome of the self-test cannot be written to %s (%s): it runs at each start", path, error)


def _fingerprint(model: PreTrainedModel, purpose: str) -> str:
    """A digest of all that the outcome depends on: the configuration, some weights, device, versions, code."""
    first = [value.detach().flatten()[:4].float().cpu() for value in model.parameters()]
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256()
    texts = [purpose, device, str(model.dtype), model.config.to_json_string()]
    texts += [version(package) for package in ("torch", "transformers", "peft")]
    for part in [*(text.encode() for text in texts), torch.cat(first).numpy().tobytes(), *code]:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
