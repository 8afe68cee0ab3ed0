"""One training loop for both models: next-token loss on the written tokens, fresh samples at every step, resumable."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.small_models.optimiser import build_optimisers

logger = logging.getLogger(__name__)

MICROBATCH_TOKENS = 2048


@dataclass(frozen=True)
class Example:
    """Token ids behind one prefix; ``learnt`` marks the tokens to be predicted. ``branches`` are continuations of the
    prefix that do not see one another (the reflections on one trajectory)."""

    prefix: list[int]
    learnt: list[bool]
    branches: list[list[int]]

    @property
    def length(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


@dataclass(frozen=True)
class Shape:
    """The shape of a model of Llama's architecture."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    positions: int
    rope_theta: float


@dataclass(frozen=True)
class Role:
    """One of the shipped models."""

    shape: Shape
    seed: int
    steps: int
    read_weight: float = 0.0
    """As in :func:`train`."""


def build_model(tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def actor_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, except_for: Collection[int] = ()) -> Example:
    """An actor's whole play: every action is learnt, with the line's end; nothing else is.

    Args:
        except_for: the numbers of actions, from 0, that are not learnt.
    """
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt)][:-1]
    ask, end = tokenizer.convert_tokens_to_ids([">", "\n"])
    learnt: list[bool] = []
    acting = False
    action = -1
    for token in ids:
        learnt.append(acting and action not in except_for)
        action += token == ask
        acting = token == ask or (acting and token != end)
    return Example(ids, learnt, [])


def train(
    model: LlamaForCausalLM,
    samples: Callable[[int], Sequence[Example]],
    folder: Path,
    steps: int,
    lr: float,
    every: int = 100,
    read_weight: float = 0.0,
) -> None:
    """``samples(step)`` gives a batch; the state is saved to ``folder`` every ``every`` steps and picked up again.

    A line a minute is logged; losses are those of the learnt tokens.

    Args:
        read_weight: The weight in the loss of a token that is read and not learnt. With some weight, a model learns
            sooner to copy names from what it reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_begun(folder, {"steps": steps, "lr": lr, "read_weight": read_weight})
    optimisers = build_optimisers(model, lr)
    start = _restore(model, optimisers, folder)
    began = time.monotonic()
    said = began
    tokens = 0
    model.train()
    losses: list[float] = []
    for step in range(start, steps):
        rate = _schedule(step, steps)
        for optimiser in optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
        batch = sorted(samples(step), key=lambda example: example.length)
        count = sum(sum(e.learnt) + sum(map(len, e.branches)) for e in batch)
        total = 0.0
        for micro in _microbatches(batch):
            learnt, read = _losses(model, micro, read_weight > 0)
            ((learnt + read_weight * read) / count).backward()
            total += learnt.item() / count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        tokens += sum(example.length for example in batch)
        losses.append(total)
        now = time.monotonic()
        if now - said > 60:
            said = now
            left = (now - began) / (step + 1 - start) * (steps - step - 1) / 60
            logger.info("step %d of %d: loss %.3f, %.0f minutes left", step + 1, steps, total, left)
        if (step + 1) % every == 0 or step + 1 == steps:
            _save(model, optimisers, folder, step + 1)
            line = {
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "tokens_per_second": tokens / (time.monotonic() - began),
            }
            losses = []
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({key: round(value, 4) for key, value in line.items()}) + "\n")


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 2 %, then a cosine to zero."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _microbatches(batch: Sequence[Example]) -> list[list[Example]]:
    groups: list[list[Example]] = [[]]
    for example in batch:
        if groups[-1] and (len(groups[-1]) + 1) * example.length > MICROBATCH_TOKENS:
            groups.append([])
        groups[-1].append(example)
    return groups


def _losses(model: LlamaForCausalLM, batch: Sequence[Example], with_read: bool) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the learnt tokens, and of those that are only read (0 unless ``with_read``)."""
    width = max(example.length for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)  # (B, T)
    positions = torch.zeros_like(ids)
    segment = torch.zeros_like(ids)  # 0: prefix, k: k-th branch
    rows: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    written: list[bool] = []
    for row, example in enumerate(batch):
        prefix = len(example.prefix)
        ids[row, :prefix] = torch.tensor(example.prefix)
        positions[row, :prefix] = torch.arange(prefix)
        for index, learnt in enumerate(example.learnt[1:], 1):
            if learnt or with_read:
                rows.append(row)
                sources.append(index - 1)
                targets.append(example.prefix[index])
                written.append(learnt)
        at = prefix
        for number, branch in enumerate(example.branches, 1):
            end = at + len(branch)
            ids[row, at:end] = torch.tensor(branch)
            positions[row, at:end] = prefix + torch.arange(len(branch))
            segment[row, at:end] = number
            rows.extend([row] * len(branch))
            sources.extend([prefix - 1, *range(at, end - 1)])
            targets.extend(branch)
            written.extend([True] * len(branch))
            at = end
    mask = None
    if any(example.branches for example in batch):
        same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        mask = (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]  # (B, 1, T, T)
    hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state
    logits = model.lm_head(hidden[rows, sources])
    each = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(targets), reduction="none")
    learnt = torch.tensor(written)
    return each[learnt].sum(), each[~learnt].sum()


def _check_begun(folder: Path, settings: dict[str, float]) -> None:
    """Refuse to continue a training that was begun with other settings."""
    file = folder / "settings.json"
    begun = json.loads(file.read_text()) if file.is_file() else {} if (folder / "step").is_file() else settings
    if begun != settings:
        made = begun or "settings of an earlier version"
        raise ValueError(f"{folder} holds a training with {made}, not {settings}: remove it to begin anew")
    file.write_text(json.dumps(settings))


def _save(model: LlamaForCausalLM, optimisers: Sequence[torch.optim.Optimizer], folder: Path, step: int) -> None:
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    for index, optimiser in enumerate(optimisers):
        for key, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
    part = folder / "state.safetensors.part"
    save_file(tensors, part, metadata={"step": str(step)})
    part.replace(folder / "state.safetensors")
    (folder / "step").write_text(str(step))


def _restore(model: LlamaForCausalLM, optimisers: Sequence[torch.optim.Optimizer], folder: Path) -> int:
    if not (folder / "state.safetensors").exists():
        return 0
    tensors = load_file(folder / "state.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for index, optimiser in enumerate(optimisers):
        saved = optimiser.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"optimiser.{index}."):
                _, _, key, field = name.split(".")
                saved["state"].setdefault(int(key), {})[field] = value
        optimiser.load_state_dict(saved)
    return int((folder / "step").read_text())
