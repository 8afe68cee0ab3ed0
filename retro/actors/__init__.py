"""Who acts: a frozen language model, local or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retro.config import ActorSection
from retro.types import Actor

if TYPE_CHECKING:
    import torch

__all__ = ["make_actor"]


def make_actor(section: ActorSection, device: torch.device | str = "auto", ledger: Path | None = None) -> Actor:
    """The actor that a config asks for.

    Args:
        section: The config.
        device: Where a local one computes.
        ledger: Where one behind an API keeps what was spent of its budget.

    Raises:
        ConfigError: if it cannot be made (no such model, no key).
    """
    match section.kind:
        case "local":
            from retro.actors.local import LocalActor

            return LocalActor.from_section(section, device)
        case "openai":
            from retro.actors.openai import OpenAIActor

            return OpenAIActor(section, ledger)
