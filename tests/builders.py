"""The run configs of the tests: a test names the keys that it is about, and the rest is small and on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retro.config import RunConfig, parse_config


def config_tree(model: Path | None = None, /, **sections: Any) -> dict[str, Any]:
    """What a config file says; keyword arguments are its keys, and a mapping is added to what is there.

    Args:
        model: The folder of the actor's model and of the base; None leaves both to the config's defaults.
    """
    tree: dict[str, Any] = {"name": "run"}
    if model is not None:
        tree["actor"] = {"model": str(model), "max_tokens": 6}
        tree["model"] = {"base": str(model), "max_new_tokens": 6, "lora": {"r": 4, "alpha": 8}}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return tree


def run_config(runs: Path, model: Path | None = None, /, **sections: Any) -> RunConfig:
    """A config whose run folder is in ``runs``; otherwise as :func:`config_tree`."""
    return parse_config(config_tree(model, runs=str(runs), device="cpu", **sections), "test")
