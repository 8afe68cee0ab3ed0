"""``stage.json``: records what decided a stage's outputs, and tells whether a new run would be the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retro.config.migration import reward_terms
from retro.config.view import Leaf
from retro.reading import DATA_BYTES, UnreadableError, read_json

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
_MAPPINGS = ("config", "inputs", "outputs")
"""Keys of a manifest whose values are mappings."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage would do now, and the reason."""

    action: Literal["up to date", "resume", "run"]
    why: str


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder, or None if there is none or it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path, DATA_BYTES)
    except UnreadableError as error:
        logger.warning("%s: the stage counts as not run", error)
        return None
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key, {}), dict) for key in _MAPPINGS):
        logger.warning("%s: not the manifest of a stage, which counts as not run", path)
        return None
    if pairs := manifest.get("inputs", {}).pop(
        "pairs", ""
    ):  # earlier releases had one input of DPO for three keys of the config
        loss, rating, threshold = pairs.split()
        manifest["config"] |= {"reward.loss": loss, "reward.rating": rating, "reward.threshold": float(threshold)}
    if isinstance(
        reward := manifest.get("config", {}).get("ppo.reward"), str
    ):  # earlier releases had a word; now it is a list of terms
        former = {
            key: manifest["config"][f"ppo.{key}"] for key in ("mix", "score") if f"ppo.{key}" in manifest["config"]
        }
        manifest["config"]["ppo.reward"] = reward_terms(reward, **former)
    return manifest


def compare(folder: Path, leaves: Sequence[Leaf], inputs: Mapping[str, str]) -> Plan:
    """What the stage in ``folder`` would do, if ``leaves`` of the config and ``inputs`` decide its result."""
    manifest = read_manifest(folder)
    if manifest is None:
        return Plan("run", "not run yet")
    recorded_inputs = manifest.get("inputs", {})
    changes = [f"config {key}" for key in _changed_keys(manifest.get("config", {}), leaves)]
    changes += [
        f"input {key}" for key in sorted({*recorded_inputs, *inputs}) if recorded_inputs.get(key) != inputs.get(key)
    ]
    if changes:
        return Plan("run", "changed: " + ", ".join(changes))
    if manifest.get("status") != "complete":
        return Plan("resume", "was interrupted")
    missing = [output["path"] for output in manifest["outputs"].values() if not (folder / output["path"]).exists()]
    if missing:
        return Plan("run", "missing: " + ", ".join(missing))
    return Plan("up to date", "same config and inputs")


def recorded(leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The config as a manifest records it: the value of each key, and each entry of a mapping by itself."""
    return {key: value for leaf in leaves for key, value in _entries(leaf.key, leaf.value)}


def _changed_keys(manifest: Mapping[str, Any], leaves: Sequence[Leaf]) -> list[str]:
    """The keys whose values differ from the manifest's.

    A key that is missing in the manifest was not declared at that time, or did not exist: it is compared by its
    default. A key that only the manifest has is no longer read, and is ignored.
    """
    changed: set[str] = set()
    for leaf in leaves:
        old = {key: value for key, value in manifest.items() if key == leaf.key or key.startswith(f"{leaf.key}.")}
        new = dict(_entries(leaf.key, leaf.value))
        if old:
            changed |= {key for key in {*old, *new} if _text(old, key) != _text(new, key)}
        elif leaf.value != leaf.default:
            changed.add(leaf.key)
    return sorted(changed)


def _text(entries: Mapping[str, Any], key: str) -> str | None:
    return (
        json.dumps(entries[key], sort_keys=True) if key in entries else None
    )  # as text, since 1, 1.0 and True are equal in Python


def _entries(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _entries(f"{key}.{name}", inner)
    else:
        yield key, value
