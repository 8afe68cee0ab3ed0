"""Shared prefixes: the responses to one prompt stand behind it in one sequence, and do not see one another.

A prompt of P tokens with K responses of L tokens costs P + K·L tokens instead of K·(P + L). Each response's positions
start anew after the prompt and its siblings are hidden from it, so every hidden state, and every gradient, is that of
the response alone behind its prompt. Such a tree is as long as it is: several stand in one row up to a budget of
tokens, without padding, and do not see one another either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from retro.models.attention import (
    block_mask,
    padded_length,
    slice_inputs,
    use_shared_prefixes,
    uses_flex_attention,
)
from retro.models.backbone import hidden_states, plain_model
from retro.models.bases import shares_prompts
from retro.models.token_statistics import token_statistics

Head = Callable[[Tensor], Tensor]
"""Hidden states (N, H) → numbers (N,)."""


@dataclass(frozen=True)
class PackedBatch:
    """Trees (a prompt and its responses) in a row of T tokens: R responses, N response tokens in all."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T) in each tree anew, in each response anew from the prompt on
    trees: Tensor  # (T,) the tree of each token
    segments: Tensor  # (T,) 0: its prompt, k: its k-th response
    shapes: tuple[tuple[int, int], ...]
    """Of each tree: tokens of its prompt, tokens in all."""
    sources: Tensor  # (N,) the place in the row that predicts a response token: the token before it
    targets: Tensor  # (N,) the token itself
    owners: Tensor  # (N,) its response, 0 … R - 1 in the order given
    steps: Tensor  # (N,) its place within the response
    last_places: Tensor  # (R,) where each response's last token stands
    mask: Tensor  # (R, L) bool: which tokens there are
    longest: int
    """Tokens of the longest prompt with one of its responses."""
    _inputs: dict[tuple[bool, torch.dtype], dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        if self.input_ids.device == device:
            return self
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved, _inputs={})

    def inputs(self, flex: bool, dtype: torch.dtype) -> dict[str, Any]:
        """What the model is given, its mask included.

        Made once and kept: PPO runs the same batch by two adapters and in every epoch. That is, a tree of P + R tokens,
        R · (P + R) numbers of ``dtype`` on the plain way (5 MiB in bfloat16 for 1,536 + 8 · 128 tokens: a hundredth of
        one layer's activations at 7B), and next to nothing for FlexAttention.
        """
        key = (flex, dtype)
        if key not in self._inputs:
            row = {"input_ids": self.input_ids, "position_ids": self.position_ids}
            if flex:
                extra = padded_length(len(self.trees)) - len(self.trees)
                row = {name: pad(value, (0, extra)) for name, value in row.items()}
                trees, segments = (pad(value, (0, extra), value=-1) for value in (self.trees, self.segments))
                self._inputs[key] = row | {"attention_mask": block_mask(trees, segments)}
            else:
                self._inputs[key] = row | slice_inputs(self.shapes, self.segments, dtype)
        return self._inputs[key]


@dataclass(frozen=True, slots=True)
class ResponseOutputs:
    """What a model says about given responses, padded on the right with zeros."""

    log_probs: Tensor  # (R, L) log π(a_t | s_t), nats
    entropies: Tensor  # (R, L) of π(· | s_t), nats
    values: Tensor | None  # (R, L) the head at s_t, before token t is written; None without a head
    mask: Tensor  # (R, L) bool


def tree_tokens(
    model: nn.Module, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]
) -> list[int]:
    """What each tree takes of a pass's budget: its tokens, or where the model cannot share prompts a row for each
    response, all as long as the longest."""
    longest = [len(prompt) + max(map(len, group)) for prompt, group in zip(prompts, responses, strict=True)]
    if longest and not shares_prompts(plain_model(model), "training", max(longest)):
        return [len(group) * max(longest) for group in responses]
    return [len(prompt) + sum(map(len, group)) for prompt, group in zip(prompts, responses, strict=True)]


def plan(tokens: Sequence[int], budget: int | None = None, most: int | None = None) -> list[list[int]]:
    """Distribute trees over passes: their places, each once; the same for the same lengths.

    First fit, the longest first: a pass is filled up with shorter trees before another one is begun.

    Args:
        tokens: of each tree, as :func:`tree_tokens` counts them.
        budget: tokens of a pass; a longer tree goes alone. (There is no padding to count on the plain way; a
            FlexAttention row is rounded up by 1/16 at most, and not beyond a power of two.)
        most: trees of a pass.
    """
    passes: list[list[int]] = []
    sums: list[int] = []
    for place in sorted(range(len(tokens)), key=lambda place: (-tokens[place], place)):
        for number, members in enumerate(passes):
            room = budget is None or sums[number] + tokens[place] <= budget
            if room and (most is None or len(members) < most):
                members.append(place)
                sums[number] += tokens[place]
                break
        else:
            passes.append([place])
            sums.append(tokens[place])
    return passes


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> PackedBatch:
    """One row of trees: each prompt, its responses behind it.

    Args:
        prompts: tokens of each, at least one.
        responses: of each prompt, tokens of each, at least one. The outputs keep their order, prompt by prompt.

    Raises:
        ValueError: for an empty prompt or response.
    """
    if not prompts or not all(prompts) or not all(responses) or not all(map(all, responses)):
        raise ValueError(
            "an empty prompt or response cannot be packed: there is no token to predict from, or none at all"
        )
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    shapes: list[tuple[int, int]] = []
    predicted: list[tuple[int, int, int, int]] = []  # source, target, owner, step
    last_places: list[int] = []
    for prompt, group in zip(prompts, responses, strict=True):
        start = len(ids)
        ids += [*prompt, *chain(*group)]
        shapes.append((len(prompt), len(ids) - start))
        positions += range(len(prompt))
        segments += [0] * len(prompt)
        end = start + len(prompt)
        for number, response in enumerate(group, 1):
            first, end = end, end + len(response)
            positions += range(len(prompt), len(prompt) + len(response))
            segments += [number] * len(response)
            sources = [start + len(prompt) - 1, *range(first, end - 1)]
            predicted += [
                (source, target, len(last_places), step)
                for step, (source, target) in enumerate(zip(sources, response, strict=True))
            ]
            last_places.append(end - 1)
    lengths = torch.tensor([len(response) for group in responses for response in group])
    source_of, target_of, owner_of, step_of = torch.tensor(predicted).T.contiguous()
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        trees=torch.arange(len(shapes)).repeat_interleave(torch.tensor([total for _, total in shapes])),
        segments=torch.tensor(segments),
        shapes=tuple(shapes),
        sources=source_of,
        targets=target_of,
        owners=owner_of,
        steps=step_of,
        last_places=torch.tensor(last_places),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        longest=max(positions) + 1,
    )


def response_outputs(
    model: nn.Module,
    packed: PackedBatch,
    head: Head | None = None,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> ResponseOutputs:
    """Log-probabilities, entropies and values of the responses' tokens; logits are computed there alone.

    Args:
        model: a causal LM or a PEFT wrapper, with its role active.
        head: for the values.
        temperature: of the distribution that is meant.
        entropy_gradient: without it the entropies are constants of the backward pass.
    """
    packed = packed.to(plain_model(model).device)
    hidden = _hidden(model, packed, packed.sources, packed.owners, packed.steps)  # (N, H)
    log_probs, entropies = token_statistics(model, hidden, packed.targets, temperature, entropy_gradient)
    values = None if head is None else _spread(head(hidden), packed)
    return ResponseOutputs(_spread(log_probs, packed), _spread(entropies, packed), values, packed.mask)


def last_token_scores(model: nn.Module, packed: PackedBatch, head: Head) -> Tensor:
    """The head at each response's last token: (R,)."""
    packed = packed.to(plain_model(model).device)
    owners = torch.arange(len(packed.last_places), device=packed.mask.device)
    return head(_hidden(model, packed, packed.last_places, owners, packed.mask.sum(1)))


def _hidden(model: nn.Module, packed: PackedBatch, places: Tensor, owners: Tensor, steps: Tensor) -> Tensor:
    """Hidden states (n, H) at ``places`` of the row: there stand the last tokens of the prompts of ``owners`` with
    ``steps`` tokens of their responses."""
    plain = plain_model(model)
    if not shares_prompts(plain, "training", packed.longest):
        return _unshared_hidden(plain, packed, owners, steps)
    use_shared_prefixes(plain)
    inputs = packed.inputs(uses_flex_attention(plain), plain.dtype)
    return hidden_states(model, **inputs, use_cache=False)[0, places]


def _unshared_hidden(model: PreTrainedModel, packed: PackedBatch, owners: Tensor, steps: Tensor) -> Tensor:
    """The same with each response in a row of its own, behind its own copy of the prompt and under the model's mask."""
    trees = packed.trees[packed.last_places]  # (R,)
    prompts, totals = torch.tensor(packed.shapes, device=trees.device).unbind(1)
    starts, lengths = (totals.cumsum(0) - totals)[trees, None], prompts[trees, None]  # (R, 1)
    responses = packed.mask.sum(1, keepdim=True)
    along = torch.arange(packed.longest, device=trees.device)  # (W,)
    there = along < lengths + responses  # (R, W)
    skipped = packed.last_places[:, None] + 1 - responses - starts - lengths  # its siblings before it
    places = torch.where(there, starts + along + torch.where(along < lengths, 0, skipped), 0)
    hidden = hidden_states(
        model, input_ids=packed.input_ids[0, places], attention_mask=there.long(), use_cache=False
    )  # (R, W, H)
    return hidden[owners, lengths[owners, 0] - 1 + steps]


def _spread(values: Tensor, packed: PackedBatch) -> Tensor:
    """(N,) → (R, L), zeros where there is no token."""
    return values.new_zeros(packed.mask.shape).index_put((packed.owners, packed.steps), values)
