"""Generation with a key-value memory of our own: ragged batches, shared prompts, conversations that grow.

Two uses. ``sample`` draws several answers to each prompt, which is computed and held once for all of them
(reflections). ``complete`` answers the next turn of many conversations at once, each of which keeps its row of the
memory, so that only what is new is computed (actors). The results of both are those of each sequence alone, up to the
rounding of batched sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.models.backbone import additive_mask, hidden_states, logits_of, plain_model
from retro.models.bases import shares_prompts
from retro.models.cache import RowCache
from retro.models.draws import RowSamplings, draw
from retro.models.grouped import SharedRows, attention_on_shared_rows, query_groups
from retro.models.limits import context_tokens
from retro.models.plain_generation import generate_plainly
from retro.models.running import Generated, Running
from retro.models.sessions import Ids, Sessions
from retro.models.stopping import StopStrings
from retro.models.text import end_tokens
from retro.types import Sampling

_PREFILL_TOKENS = 4096
"""Tokens of one prefill pass, padding included; one sequence may be longer."""
_GPU_CACHE_BYTES = 8 * 2**30
"""Six prompts of 1,536 tokens with 8 × 128 behind each on a 7B model without grouped queries: about what an update of
as many tokens takes there with checkpointing, so that sampling does not set the peak of a PPO step alone."""


class Engine:
    """Generates with ``model``, a transformers causal LM or a PEFT wrapper around one, with whatever adapter is active.

    Args:
        model: one whose architecture is listed in :data:`retro.models.bases.SAMPLING` uses our key-value memory; any
            other one, and sequences longer than a sliding window, go the plain way
            (:mod:`retro.models.plain_generation`), which costs a forward pass for each answer's copy of the prompt.
        tokenizer: for the end token and stop strings.
        max_rows: sequences generated at once, and conversations kept.
        cache_bytes: what the key-value memory may take; by default 2 GiB on a CPU; half of what a GPU has free, at most
            8 GiB.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int = 256,
        cache_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.cache_bytes = cache_bytes or _spare_bytes(plain_model(model).device)
        self.context = context_of(model)
        self._plain = plain_model(model)
        self._stops = StopStrings(tokenizer)
        self._ends = sorted(end_tokens(tokenizer, self._plain.generation_config))

    @cached_property
    def _sessions(self) -> Sessions:
        return Sessions(RowCache(self._plain))

    def forget(self) -> None:
        """Drop every conversation: needed after the model's weights or its active adapter have changed."""
        self.__dict__.pop("_sessions", None)

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
        results: list[list[Generated]] = [[] for _ in prompts]
        sharing = [place for place, prompt in enumerate(prompts) if self._shares(len(prompt), sampling)]
        for place in set(range(len(prompts))).difference(sharing):
            results[place] = self._generate(prompts[place], [replace(sampling, seed=seed) for seed in seeds[place]])
        for members in self._chunks([len(prompts[place]) for place in sharing], count, sampling):
            chunk = [sharing[member] for member in members]
            chosen = [np.asarray(prompts[place], dtype=np.int64) for place in chunk]
            cache = RowCache(self._plain, len(chunk), max(self._places(len(ids), count, sampling) for ids in chosen))
            hidden = self._prefill(cache, range(len(chunk)), chosen, [0] * len(chunk))
            samplings = [[replace(sampling, seed=seed) for seed in seeds[place]] for place in chunk]
            answers, _ = self._decode(cache, hidden, [len(ids) for ids in chosen], samplings)
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
        results: dict[int, Generated] = {}
        rest: list[int] = []
        for place, (_, ids, sampling) in enumerate(requests):
            if self._shares(len(ids), sampling):
                rest.append(place)
            else:
                [results[place]] = self._generate(ids, [sampling])
        while rest:
            chosen = [requests[place] for place in rest]
            need = max(min(len(ids) + sampling.max_tokens, self.context) for _, ids, sampling in chosen)
            rows = self._rows(need)
            results |= zip(rest[:rows], self._complete(chosen[:rows], rows, need), strict=True)
            rest = rest[rows:]
        return [results[place] for place in range(len(requests))]

    def check_length(self, tokens: int) -> None:
        """Raise ValueError for a prompt that the model cannot continue."""
        if tokens == 0:
            raise ValueError("an empty prompt cannot be continued: give at least one token")
        if tokens >= self.context:
            raise ValueError(
                f"a prompt of {tokens} tokens leaves no room in the model's context of {self.context} tokens"
            )

    def _shares(self, length: int, sampling: Sampling) -> bool:
        """Whether a prompt of ``length`` tokens with its answer can use the key-value memory."""
        return shares_prompts(self._plain, "sampling", min(length + sampling.max_tokens, self.context))

    def _generate(self, prompt: Sequence[int], samplings: Sequence[Sampling]) -> list[Generated]:
        room = self.context - len(prompt)
        return generate_plainly(self._plain, prompt, samplings, room, self._ends, self._stops)

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
        hidden = self._prefill(
            cache,
            [place.row for place in chosen],
            [place.ids[place.known :] for place in chosen],
            [place.known for place in chosen],
        )
        samplings = [[requests[i][2]] for i in by_row]
        answers, rows_now = self._decode(cache, hidden, [len(place.ids) for place in chosen], samplings)
        results = dict(zip(by_row, answers, strict=True))
        for place, answer, row in zip(chosen, answers, rows_now, strict=True):
            place.row = row
            self._sessions.keep(place, answer.ids[:-1])  # the last token was drawn, not fed
        return [results[i] for i in range(len(requests))]

    def _rows(self, need: int) -> int:
        return max(1, min(self.max_rows, self.cache_bytes // self._sessions.cache.row_bytes(need)))

    def _places(self, length: int, count: int, sampling: Sampling) -> int:
        """Places of a row that holds a prompt and all but the last token of each of its samples."""
        return length + count * (min(sampling.max_tokens, self.context - length) - 1)

    def _chunks(self, lengths: Sequence[int], count: int, sampling: Sampling) -> list[list[int]]:
        """Prompts of similar length together, as many as the row and byte budgets allow."""
        chunks: list[list[int]] = []
        need = 0
        for prompt in sorted(range(len(lengths)), key=lambda place: lengths[place]):
            need = max(need, self._places(lengths[prompt], count, sampling))
            if chunks and len(chunks[-1]) < min(self.max_rows // count, self._rows(need)):
                chunks[-1].append(prompt)
            else:
                chunks.append([prompt])
                need = self._places(lengths[prompt], count, sampling)
        return chunks

    def _prefill(self, cache: RowCache, rows: Sequence[int], tails: Sequence[Ids], starts: Sequence[int]) -> Tensor:
        """Feed ``tails[i]`` to row ``rows[i]`` from place ``starts[i]`` on, rows with similar tails together: the
        hidden states (R, H) of the last tokens."""
        device = self._plain.device
        ends: list[Tensor] = []
        order = sorted(range(len(rows)), key=lambda i: len(tails[i]), reverse=True)
        groups = _prefill_groups(order, tails)
        for group in groups:
            group.sort(key=lambda i: rows[i])
            longest = max(len(tails[i]) for i in group)
            ids = torch.zeros(len(group), longest, dtype=torch.long)  # (B, Q)
            lengths = torch.tensor([len(tails[i]) for i in group])
            for number, i in enumerate(group):
                ids[number, : len(tails[i])] = torch.as_tensor(tails[i])
            start = torch.tensor([starts[i] for i in group])
            steps = torch.arange(longest)
            positions = start[:, None] + steps  # (B, Q)
            places = positions.masked_fill(steps >= lengths[:, None], cache.capacity)
            width = int((start + lengths).max())
            index = torch.tensor([rows[i] for i in group], device=device)
            neighbours = rows[group[-1]] - rows[group[0]] + 1 == len(group)
            here = slice(rows[group[0]], rows[group[-1]] + 1) if neighbours else index
            cache.look_at(here, index[:, None], places.to(device), width)
            mask = None  # from the beginning on, a causal one: transformers' own, or none for a kernel that knows it
            if start.any():
                visible = torch.arange(width) <= positions[..., None]  # (B, Q, width)
                mask = additive_mask(visible.to(device), self._plain.dtype)[:, None]
            hidden = hidden_states(
                self.model,
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            ends.append(hidden[torch.arange(len(group), device=device), (lengths - 1).to(device)])
        back = torch.tensor(list(chain(*groups))).argsort()
        return torch.cat(ends)[back.to(device)]

    def _decode(
        self, cache: RowCache, hidden: Tensor, lengths: Sequence[int], samplings: Sequence[Sequence[Sampling]]
    ) -> tuple[list[Generated], list[int]]:
        """Draw the samples of rows 0 … R - 1, which hold prompts of ``lengths``, from the ``hidden`` states (R, H) of
        the prompts' last tokens: the answers, prompt by prompt, and the row in which each prompt lies at the end.

        A step moves three small arrays between host and device: what was drawn, where it goes, the numbers to draw by.
        """
        device = self._plain.device
        prompts, counts = np.array(lengths), np.array([len(row) for row in samplings])
        flat = list(chain(*samplings))
        room = np.minimum([sampling.max_tokens for sampling in flat], self.context - prompts.repeat(counts))
        running = Running(flat, room, self._ends, self._stops)
        drawing = RowSamplings.of(flat, device)
        shared = SharedRows(cache, prompts, counts, query_groups(self._plain), self._plain.dtype)
        owners = torch.from_numpy(np.arange(len(prompts)).repeat(counts)).to(device)
        logits = logits_of(self.model, hidden)[owners]  # (S, V)
        with attention_on_shared_rows(self.model):
            while True:
                tokens, log_probs = draw(logits, drawing, running.step)
                drawn = torch.stack([tokens.double(), log_probs]).cpu().numpy()
                going = running.add(drawn[0].astype(np.int64), drawn[1])
                if not len(going):
                    return running.results(), shared.rows.tolist()
                if len(going) < len(tokens):
                    index = torch.from_numpy(going).to(device)
                    tokens, drawing = tokens[index], drawing.take(going, index)
                    shared.keep(running.samples)
                hidden = hidden_states(self.model, input_ids=tokens[None], **shared.feed())[0]  # (N, H)
                logits = logits_of(self.model, hidden)


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


def context_of(model: PreTrainedModel) -> int:
    """The longest sequence (tokens) that the model takes."""
    return context_tokens(plain_model(model).config) or 2**31


def _spare_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 2 * 2**30
    return min(torch.cuda.mem_get_info(device)[0] // 2, _GPU_CACHE_BYTES)
