"""retro: train the retrospective model of a frozen LLM agent.

The public names below are imported when they are first used, so that ``import retro`` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retro.agent.functions import FunctionEnvironment as FunctionEnvironment
    from retro.agent.model import Reflected as Reflected
    from retro.agent.model import RetrospectiveModel as RetrospectiveModel
    from retro.agent.retro_agent import RetroAgent as RetroAgent

__version__ = "0.1.0"

_HOMES = {
    "FunctionEnvironment": "retro.agent.functions",
    "Reflected": "retro.agent.model",
    "RetroAgent": "retro.agent.retro_agent",
    "RetrospectiveModel": "retro.agent.model",
}

__all__ = ["FunctionEnvironment", "Reflected", "RetroAgent", "RetrospectiveModel", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retro' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
