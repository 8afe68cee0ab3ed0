"""Generation with a key-value memory of our own: ragged batches, shared prompts, conversations that grow.

Two uses. ``sample`` draws several answers to each prompt behind one prefill (reflections). ``complete`` answers the
next turn of many conversations at once, each of which keeps its row of the memory, so that only what is new is
computed (actors). The results of both are those of each sequence alone, up to the rounding of batched sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.models.backbone import (
    additive_mask,
    hidden_states,
    logits_of,
    plain_model,
    require_plain_head,
    sliding_window,
)
from retro.models.cache import RowCache
from retro.models.draws import draw
from retro.models.running import Generated, Running
from retro.models.sessions import Ids, Sessions
from retro.models.stopping import StopStrings
from retro.models.text import end_tokens
from retro.types import Sampling

_PREFILL_TOKENS = 4096
"""Tokens of one prefill pass, padding included; one sequence may be longer."""


class Engine:
    """Generates with ``model``, a transformers causal LM or a PEFT wrapper around one, with whatever adapter is active.

    Args:
        model: takes 4-dimensional masks and a ``Cache`` (Llama, Mistral, Qwen2 … with sdpa or eager attention).
        tokenizer: for the end token and stop strings.
        max_rows: sequences generated at once, and conversations kept.
        cache_bytes: what the key-value memory may take; by default 2 GiB on a CPU, half of what is free on a GPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int = 256,
        cache_bytes: int | None = None,
    ) -> None:
        require_plain_head(model)
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.cache_bytes = cache_bytes or _spare_bytes(plain_model(model).device)
        self.context = _context(model)
        self._plain = plain_model(model)
        self._stops = StopStrings(tokenizer)
        self._ends = sorted(end_tokens(tokenizer))
        self._sessions = Sessions(RowCache(self._plain))

    def forget(self) -> None:
        """Drop every conversation: needed after the model's weights or its active adapter have changed."""
        self._sessions = Sessions(RowCache(self._plain))

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        """``count`` answers to each prompt, behind one prefill a prompt.

        Args:
            prompts: tokens of each.
            sampling: of all; its own seed is not used.
            seeds: ``count`` for each prompt: answer ``j`` of prompt ``i`` depends on ``seeds[i][j]`` alone.

        Raises:
            ValueError: for an empty prompt or one that leaves no room in the model's context, naming the lengths.
        """
        if any(len(row) != count for row in seeds) or len(seeds) != len(prompts):
            raise ValueError(f"sample: {len(prompts)} prompts need {count} seeds each")
        for prompt in prompts:
            self.check_length(len(prompt))
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        results: list[list[Generated]] = [[] for _ in prompts]
        for chunk in self._chunks(order, prompts, count, sampling):
            longest = len(prompts[chunk[-1]])
            cache = RowCache(self._plain, len(chunk) * count, longest + sampling.max_tokens)
            chosen = [np.asarray(prompts[place], dtype=np.int64) for place in chunk]
            self._prefill(cache, range(len(chunk)), [prompt[:-1] for prompt in chosen], [0] * len(chosen))
            cache.repeat(len(chunk), count, longest)
            samplings = [replace(sampling, seed=seed) for place in chunk for seed in seeds[place]]
            answers, _ = self._decode(cache, [prompt for prompt in chosen for _ in range(count)], samplings)
            for number, place in enumerate(chunk):
                results[place] = answers[number * count : (number + 1) * count]
        return results

    @torch.inference_mode()
    def complete(self, requests: Sequence[tuple[str, Sequence[int], Sampling]]) -> list[Generated]:
        """The next turn of each conversation: (session, all tokens so far, sampling).

        A session's row keeps what was computed for it; of a new prompt only what follows the longest common prefix is
        computed. The least recently used sessions give way. An empty session is forgotten at once.

        Raises:
            ValueError: for an empty prompt or one that leaves no room in the model's context, naming the lengths.
        """
        for _, ids, _ in requests:
            self.check_length(len(ids))
        results: list[Generated] = []
        rest = list(requests)
        while rest:
            need = max(min(len(ids) + sampling.max_tokens, self.context) for _, ids, sampling in rest)
            rows = self._rows(need)
            results += self._complete(rest[:rows], rows, need)
            rest = rest[rows:]
        return results

    def check_length(self, tokens: int) -> None:
        """Raise ValueError for a prompt that the model cannot continue."""
        if tokens == 0:
            raise ValueError("an empty prompt cannot be continued: give at least one token")
        if tokens >= self.context:
            raise ValueError(
                f"a prompt of {tokens} tokens leaves no room in the model's context of {self.context} tokens"
            )

    def _complete(
        self, requests: Sequence[tuple[str, Sequence[int], Sampling]], rows: int, need: int
    ) -> list[Generated]:
        if rows < self._sessions.cache.rows:  # longer rows: fewer of them fit
            self.forget()
        self._sessions.reserve([session for session, _, _ in requests], rows, need)
        places = self._sessions.place([(session, ids) for session, ids, _ in requests])
        by_row = sorted(range(len(places)), key=lambda i: places[i].row)  # rows 0 … n - 1
        chosen = [places[i] for i in by_row]
        cache = self._sessions.cache
        self._prefill(
            cache,
            [place.row for place in chosen],
            [place.ids[place.known : -1] for place in chosen],
            [place.known for place in chosen],
        )
        answers, ended = self._decode(cache, [place.ids for place in chosen], [requests[i][2] for i in by_row])
        results = dict(zip(by_row, answers, strict=True))
        for place, answer, row in zip(chosen, answers, ended, strict=True):
            place.row = row
            self._sessions.keep(place, answer.ids[:-1])  # the last token was drawn, not fed
        return [results[i] for i in range(len(requests))]

    def _rows(self, need: int) -> int:
        return max(1, min(self.max_rows, self.cache_bytes // self._sessions.cache.row_bytes(need)))

    def _chunks(
        self, order: list[int], prompts: Sequence[Sequence[int]], count: int, sampling: Sampling
    ) -> list[list[int]]:
        """Prompts of similar length together, as many as the row and byte budgets allow."""
        chunks: list[list[int]] = []
        for place in order:
            rows = self._rows(len(prompts[place]) + sampling.max_tokens)
            if chunks and (len(chunks[-1]) + 1) * count <= rows:
                chunks[-1].append(place)
            else:
                chunks.append([place])
        return chunks

    def _prefill(self, cache: RowCache, rows: Sequence[int], tails: Sequence[Ids], starts: Sequence[int]) -> None:
        """Feed ``tails[i]`` to row ``rows[i]`` from place ``starts[i]`` on, rows with similar tails together."""
        device = self._plain.device
        order = sorted((i for i in range(len(rows)) if len(tails[i])), key=lambda i: len(tails[i]), reverse=True)
        for group in _prefill_groups(order, tails):
            group.sort(key=lambda i: rows[i])
            longest = max(len(tails[i]) for i in group)
            ids = torch.zeros(len(group), longest, dtype=torch.long)  # (B, Q)
            lengths = torch.tensor([len(tails[i]) for i in group])
            for number, i in enumerate(group):
                ids[number, : len(tails[i])] = torch.as_tensor(tails[i])
            start = torch.tensor([starts[i] for i in group])
            steps = torch.arange(longest)
            positions = start[:, None] + steps  # (B, Q)
            padding = steps >= lengths[:, None]
            width = int((start + lengths).max())
            chosen = torch.tensor([rows[i] for i in group])
            self._forward(
                cache,
                chosen,
                ids.to(device),
                positions.to(device),
                width,
                places=positions.masked_fill(padding, cache.capacity),
            )

    def _forward(
        self, cache: RowCache, rows: Tensor, ids: Tensor, positions: Tensor, width: int, places: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, Q, H) of ``ids`` (B, Q) at ``positions`` of ``rows`` (B,); each sees what lies before."""
        device = ids.device
        first, last = int(rows[0]), int(rows[-1])
        index = rows.to(device)
        neighbours = last - first + 1 == len(rows)
        where = positions if places is None else places.to(device)
        cache.look_at(slice(first, last + 1) if neighbours else index, index[:, None], where, width)
        visible = torch.arange(width, device=device) <= positions[..., None]  # (B, Q, width)
        return hidden_states(
            self.model,
            input_ids=ids,
            position_ids=positions,
            attention_mask=additive_mask(visible, self._plain.dtype)[:, None],
            past_key_values=cache,
            use_cache=True,
        )

    def _decode(
        self, cache: RowCache, sequences: Sequence[Ids], samplings: Sequence[Sampling]
    ) -> tuple[list[Generated], list[int]]:
        """Continue rows 0 … n - 1, which hold all of ``sequences`` but the last tokens: the answers, and where each
        sequence's row lies at the end."""
        running = Running(sequences, samplings, self.context, self._ends, self._stops)
        device = self._plain.device
        while running.count:
            positions = torch.from_numpy(running.positions)[:, None]
            hidden = self._forward(
                cache,
                torch.arange(running.count),
                torch.from_numpy(running.tokens)[:, None].to(device),
                positions.to(device),
                int(positions.max()) + 1,
            )
            tokens, log_probs = draw(logits_of(self.model, hidden[:, 0]), running.samplings, running.drawn)
            running.add(tokens.cpu().numpy(), log_probs.double().cpu().numpy())
            for here, there, width in running.leave():
                cache.swap(torch.from_numpy(here).to(device), torch.from_numpy(there).to(device), width)
        return running.results()


def _prefill_groups(order: Sequence[int], tails: Sequence[Ids]) -> list[list[int]]:
    """Cut rows, the longest tail first, into passes: none above the token budget, no row below half a pass's width."""
    groups: list[list[int]] = []
    width = 0
    for i in order:
        if groups and 2 * len(tails[i]) >= width and (len(groups[-1]) + 1) * width <= _PREFILL_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
            width = len(tails[i])
    return groups


def _context(model: PreTrainedModel) -> int:
    """The longest sequence (tokens) that the model can take in one piece."""
    config = plain_model(model).config.get_text_config()
    window = sliding_window(model)
    longest = int(getattr(config, "max_position_embeddings", None) or 2**31)
    return min(longest, window) if window else longest


def _spare_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 * 2**30
