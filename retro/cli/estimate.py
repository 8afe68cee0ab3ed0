"""Estimates what a run will need: the most episodes, and memory by the headers of the checkpoints.

No weights are read and nothing is downloaded. For a base that is not on this machine, the size in its name counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from retro.config import CheckpointSection, ModelSection, NonNegativeInt, RunConfig
from retro.models.limits import DEFAULT_PROMPT_TOKENS
from retro.reading import UnreadableError, problems, read_json
from retro.rollout.attempts import Plan

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_NF4_BYTES = 0.56
"""Four bits and a share of the double-quantised block scales (Dettmers et al. 2023, section 3)."""
_ADAM_BYTES = 16
"""For a trained parameter: itself, its gradient and two moments, all float32."""
_ACTIVATION_VALUES = 34
"""Values kept for the backward pass, a token, a layer and a hidden unit, without attention scores
(Korthikanti et al. 2022, equation 2, counts 34 bytes at 16 bits: 17 values and their masks; doubled for LoRA's own)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts in the headers of a checkpoint."""

    parameters: int
    shapes: Mapping[str, tuple[int, ...]]
    hidden: int
    layers: int


def most_episodes(config: RunConfig) -> dict[str, int]:
    """The most episodes that each stage can play (``evaluate``: one arm), as if every attempt but the last failed."""
    counts = config.environment.tasks.model_dump()
    tasks = sum(counts[split] for split in config.collect.splits)
    of_task = Plan.of((), config.collect, config.actor).most
    collected = tasks * of_task
    if config.collect.episodes is not None:
        collected = min(collected, config.collect.episodes + of_task - 1)
    played = config.ppo.steps * config.ppo.contexts * _retries(config)
    guarded = 1 + math.ceil(config.ppo.steps / config.ppo.validate_every)  # before the first step and after the last
    return {
        "collect": collected,
        "ppo": played + guarded * config.ppo.validation_contexts,
        "evaluate": counts["test"] * config.evaluate.attempts,
    }


def _retries(config: RunConfig) -> int:
    """Episodes that the policy's reward needs for each failed one: a retry for each response, and controls.

    In a chain, each failed retry may need one more retry, with controls of its own.
    """
    needs, options = config.ppo.needs, [getattr(term, "options", term) for term in config.ppo.rewards]
    retries, controls = config.ppo.group if "retries" in needs else 0, 0
    if "controls" in needs and config.actor.temperature > 0:
        controls = max(getattr(item, "controls", 0) for item in options)
    further = (getattr(config.ppo, "turns", 1) - 1) * retries * (1 + controls)
    return retries + controls + further


def read_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Parameter count and shapes from ``config.json`` and the safetensors headers; None where there are none.

    Raises:
        UnreadableError: naming the file that is damaged.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
        except SafetensorError as error:
            raise UnreadableError(f"{file}: {error}; copy the file again") from None
    path = folder / "config.json"
    try:
        settings = _Settings.model_validate(read_json(path))
    except ValidationError as error:
        raise UnreadableError(f"{path}: {problems(error)}") from None
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return Checkpoint(parameters, shapes, settings.hidden_size, settings.num_hidden_layers)


class _Settings(BaseModel):
    """The keys of ``config.json`` that the estimate uses."""

    hidden_size: NonNegativeInt = 0
    num_hidden_layers: NonNegativeInt = 0


def parameters_by_name(name: str) -> int | None:
    """``Qwen/Qwen2.5-7B-Instruct`` → 7,000,000,000; None if the name has no size."""
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", Path(name).name.lower().replace("-", " "))
    return round(float(match[1]) * {"b": 1e9, "m": 1e6}[match[2]]) if match else None


def memory_lines(config: RunConfig) -> list[str]:
    """A line for the actor and one for training, in MiB or GiB, or why they are unknown."""
    lines = []
    if isinstance(config.actor, CheckpointSection):
        weights = _weight_bytes(config.actor.model, config.actor)
        each = f" in each of {config.runner.processes} processes" if config.runner.processes > 1 else ""
        known = f"actor: {_size(weights)} of weights{each}" if weights else _unknown("actor", config.actor.model)
        lines.append(known)
    elif ":" in config.actor.chosen:
        lines.append(f"actor: not known, since {config.actor.chosen} is a kind of your own")
    else:
        lines.append(f"actor: served by {getattr(config.actor, 'base_url', None) or 'the OpenAI API'}, none here")
    weights = _weight_bytes(config.model.base, config.model)
    if weights is None:
        return [*lines, _unknown("retrospective model", config.model.base)]
    checkpoint = read_checkpoint(config.model.base)
    if checkpoint is None:
        return [
            *lines,
            f"retrospective model: {_size(weights)} of weights (by its name), adapters and activations on top",
        ]
    lora = _lora_parameters(checkpoint, config.model)
    training = lora * _ADAM_BYTES + 2 * 4 * lora  # the policy, and the frozen reference and reward adapters beside it
    live_layers = 1 if config.model.gradient_checkpointing else checkpoint.layers
    tokens = _pass_tokens(config)
    activations = tokens * checkpoint.hidden * live_layers * _ACTIVATION_VALUES * _BYTES[config.model.dtype]
    lines.append(
        f"retrospective model in PPO: about {_size(weights + training + activations)} "
        f"({_size(weights)} base, {_size(training)} adapters of {lora:,} parameters and their optimiser, "
        f"{_size(activations)} activations of {tokens:,} tokens; ppo.token_budget={config.ppo.token_budget})"
    )
    return lines


def _pass_tokens(config: RunConfig) -> int:
    """The most tokens of one pass, where all responses to a prompt are behind it: what the budget allows, but at least
    one group and at most those of a step."""
    prompt = config.model.max_prompt_tokens or DEFAULT_PROMPT_TOKENS
    group = prompt + config.ppo.group * config.model.max_new_tokens
    return max(group, min(config.ppo.token_budget, config.ppo.contexts * getattr(config.ppo, "turns", 1) * group))


def _weight_bytes(model: str, section: CheckpointSection) -> float | None:
    checkpoint = read_checkpoint(model)
    parameters = checkpoint.parameters if checkpoint else parameters_by_name(model)
    if parameters is None:
        return None
    return parameters * (_NF4_BYTES if section.quantization == "nf4" else _BYTES[section.dtype])


def _lora_parameters(checkpoint: Checkpoint, section: ModelSection) -> int:
    targets = section.lora.target_modules
    wanted = ("_proj",) if targets == "all-linear" else tuple(targets)
    linear = [
        shape
        for name, shape in checkpoint.shapes.items()
        if len(shape) == 2 and name.removesuffix(".weight").endswith(wanted)
    ]
    return sum(section.lora.r * (rows + columns) for rows, columns in linear)


def _unknown(what: str, model: str) -> str:
    return f"{what}: {model} is not on this machine, and its name does not give its size"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
