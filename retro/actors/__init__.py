"""Who acts: a frozen language model, local or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retro.config import ActorSection
from retro.types import Actor

if TYPE_CHECKING:
    import torch

__all__ = ["make_actor"]


def make_actor(section: ActorSection, device: torch.device | str = "auto") -> Actor:
    """The actor that a config asks for; ``device`` is for local ones.

    Raises:
        ConfigError: if it cannot be made (no such model, no key).
    """
    match section.kind:
        case "local":
            from retro.actors.local import LocalActor

            return LocalActor.from_section(section, device)
        case "openai":
            from retro.actors.openai import OpenAIActor

            return OpenAIActor(section)
