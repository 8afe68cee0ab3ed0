"""Shared prefixes: the responses to one prompt stand behind it in one sequence, and do not see one another.

A prompt of P tokens with K responses of L tokens costs P + K·L tokens instead of K·(P + L). Each response's positions
start anew after the prompt and a block mask hides its siblings, so every hidden state, and every gradient, is that of
the response alone behind its prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retro.models.backbone import (
    additive_mask,
    hidden_states,
    logits_of,
    plain_model,
    require_plain_head,
    sliding_window,
)

logger = logging.getLogger(__name__)

Head = Callable[[Tensor], Tensor]
"""Hidden states (N, H) → numbers (N,)."""

_LOGITS = 2**25
"""Logits held at once; above it they are computed in pieces, and again in the backward pass."""


@dataclass(frozen=True)
class PackedBatch:
    """Prompts and their responses in B rows of T tokens, padded on the right: R responses, N response tokens in all."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    segments: Tensor  # (B, T) 0: prompt, k: its k-th response, -1: padding
    rows: Tensor  # (N,) the row of each response token
    sources: Tensor  # (N,) the place in the row that predicts it: the token before it
    targets: Tensor  # (N,) the token itself
    owners: Tensor  # (N,) its response, 0 … R - 1 in the order given
    steps: Tensor  # (N,) its place within the response
    last_rows: Tensor  # (R,)
    last_places: Tensor  # (R,) where each response's last token stands
    mask: Tensor  # (R, L) bool: which tokens there are
    longest: int
    """Tokens of the longest prompt with one of its responses."""

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        if self.input_ids.device == device:
            return self
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)

    @property
    def visible(self) -> Tensor:
        """Who sees whom (B, T, T): what stands before it in the prompt and in its own response."""
        own = self.segments[:, :, None] == self.segments[:, None, :]
        prompt = self.segments[:, None, :] == 0
        length = self.input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.input_ids.device).tril()
        return (own | prompt) & causal


@dataclass(frozen=True, slots=True)
class ResponseOutputs:
    """What a model says about given responses, padded on the right with zeros."""

    log_probs: Tensor  # (R, L) log π(a_t | s_t), nats
    entropies: Tensor  # (R, L) of π(· | s_t), nats
    values: Tensor | None  # (R, L) the head at s_t, before token t is written; None without a head
    mask: Tensor  # (R, L) bool


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], pad_id: int) -> PackedBatch:
    """One row a prompt, its responses behind it.

    Args:
        prompts: tokens of each, at least one.
        responses: of each prompt, tokens of each, at least one. The outputs keep their order, prompt by prompt.
        pad_id: fills the rows; it is never seen.

    Raises:
        ValueError: for an empty prompt or response.
    """
    if not all(prompts) or not all(map(all, responses)) or not any(responses):
        raise ValueError(
            "an empty prompt or response cannot be packed: there is no token to predict from, or none at all"
        )
    rows = [[*prompt, *chain(*group)] for prompt, group in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, -1)
    places: list[tuple[int, int, int, int, int]] = []  # row, source, target, owner, step
    last: list[tuple[int, int]] = []
    for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt)
        ids[row, : len(rows[row])] = torch.tensor(rows[row])
        positions[row, :end] = torch.arange(end)
        segments[row, :end] = 0
        for number, response in enumerate(group, 1):
            start, end = end, end + len(response)
            positions[row, start:end] = len(prompt) + torch.arange(len(response))
            segments[row, start:end] = number
            sources = [len(prompt) - 1, *range(start, end - 1)]
            places += [
                (row, source, target, len(last), step)
                for step, (source, target) in enumerate(zip(sources, response, strict=True))
            ]
            last.append((row, end - 1))
    lengths = torch.tensor([len(response) for group in responses for response in group])
    row_of, source_of, target_of, owner_of, step_of = torch.tensor(places).unbind(1)
    last_rows, last_places = torch.tensor(last).unbind(1)
    return PackedBatch(
        input_ids=ids,
        position_ids=positions,
        segments=segments,
        rows=row_of,
        sources=source_of,
        targets=target_of,
        owners=owner_of,
        steps=step_of,
        last_rows=last_rows,
        last_places=last_places,
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        longest=int(positions.max()) + 1,
    )


def response_outputs(
    model: nn.Module, packed: PackedBatch, head: Head | None = None, temperature: float = 1.0
) -> ResponseOutputs:
    """Log-probabilities, entropies and values of the responses' tokens; logits are computed there alone.

    Args:
        model: a causal LM or a PEFT wrapper, with its role active.
        head: for the values.
        temperature: of the distribution that is meant.
    """
    require_plain_head(model)
    packed = packed.to(plain_model(model).device)
    hidden = _hidden(model, packed)[packed.rows, packed.sources]  # (N, H)
    log_probs, entropies = _token_statistics(model, hidden, packed.targets, temperature)
    values = None if head is None else _spread(head(hidden), packed)
    return ResponseOutputs(_spread(log_probs, packed), _spread(entropies, packed), values, packed.mask)


def last_token_scores(model: nn.Module, packed: PackedBatch, head: Head) -> Tensor:
    """The head at each response's last token: (R,)."""
    packed = packed.to(plain_model(model).device)
    return head(_hidden(model, packed)[packed.last_rows, packed.last_places])


def _hidden(model: nn.Module, packed: PackedBatch) -> Tensor:
    """Hidden states (B, T, H)."""
    window = sliding_window(model)
    if window is not None and packed.longest > window:
        return _unshared_hidden(model, packed, window)
    mask = additive_mask(packed.visible, plain_model(model).dtype)[:, None]  # (B, 1, T, T)
    return hidden_states(
        model, input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=mask, use_cache=False
    )


def _unshared_hidden(model: nn.Module, packed: PackedBatch, window: int) -> Tensor:
    """The same with each response in a row of its own, behind its own copy of the prompt, under the model's own mask.

    A layer with a sliding window would count a response's distance to the prompt over its siblings.
    """
    logger.info(
        "%s attends to a sliding window of %d tokens, shorter than %d: prompts are not shared",
        type(plain_model(model)).__name__,
        window,
        packed.longest,
    )
    result: Tensor | None = None
    for number in range(1, int(packed.segments.max()) + 1):
        rows = (packed.segments == number).any(1).nonzero()[:, 0]
        chosen = (packed.segments[rows] == 0) | (packed.segments[rows] == number)  # (b, T)
        order = torch.argsort(chosen.logical_not().to(torch.uint8), stable=True, dim=1)  # the chosen tokens first
        length = int(chosen.sum(1).max())
        places = order[:, :length]
        hidden = hidden_states(
            model,
            input_ids=packed.input_ids[rows].gather(1, places),
            attention_mask=chosen.gather(1, places).long(),
            use_cache=False,
        )
        if result is None:
            result = hidden.new_zeros(*packed.input_ids.shape, hidden.shape[-1])
        fresh = chosen.gather(1, places)
        result = result.index_put((rows[:, None].expand_as(places)[fresh], places[fresh]), hidden[fresh])
    assert result is not None
    return result


def _token_statistics(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy at each of N places, in pieces where the logits would be too many."""

    def of(piece: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logs = (logits_of(model, piece) / temperature).log_softmax(-1)  # (n, V)
        return logs.gather(-1, wanted[:, None])[:, 0], -(logs.exp() * logs).sum(-1)

    vocabulary = int(plain_model(model).config.get_text_config().vocab_size)
    size = max(1, _LOGITS // vocabulary)
    if len(hidden) <= size:
        return of(hidden, targets)
    pieces = [
        checkpoint(of, piece, wanted, use_reentrant=False) if torch.is_grad_enabled() else of(piece, wanted)
        for piece, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    log_probs, entropies = zip(*pieces, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _spread(values: Tensor, packed: PackedBatch) -> Tensor:
    """(N,) → (R, L), zeros where there is no token."""
    return values.new_zeros(packed.mask.shape).index_put((packed.owners, packed.steps), values)
