"""Generation with a key-value cache of our own: ragged batches, shared prompts, conversations that grow.

Three uses. ``sample`` draws several answers to each prompt, which is computed and held once for all of them
(reflections). ``take_turns`` answers the next turn of many conversations at once, each of which keeps its row of the
memory, so that only what is new is computed (actors). ``extend`` does both: several answers to each of many prompts
that grow (reflections that are written sentence by sentence). The results are those of each sequence alone, up to the
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

from retro.models.backbone import logits_of, plain_model
from retro.models.bases import shares_prompts
from retro.models.cache import Block, Row, RowPool, TokenShape
from retro.models.draws import RowSamplings, draw
from retro.models.free_memory import free_bytes
from retro.models.grouped import feed, query_groups
from retro.models.limits import context_tokens
from retro.models.passes import SharedRows, prompt_passes
from retro.models.plain_generation import generate_plainly
from retro.models.running import Generated, Ints, Running
from retro.models.sessions import Request, Sessions
from retro.models.stopping import StopStrings
from retro.models.text import end_tokens
from retro.types import Sampling

_GPU_CACHE_BYTES = 8 * 2**30
"""Six prompts of 1,536 tokens with 8 × 128 behind each on a 7B model without grouped queries: about what an update of
as many tokens takes there with checkpointing, so that sampling does not set the peak of a PPO step alone."""


class Engine:
    """Generates with ``model``, a transformers causal LM or a PEFT wrapper around one, with whatever adapter is active.

    Args:
        model: one whose architecture is listed in :data:`retro.models.bases.SAMPLING` uses our key-value cache; any
            other one, and sequences longer than a sliding window, go the plain way
            (:mod:`retro.models.plain_generation`), which costs a forward pass for each answer's copy of the prompt.
        tokenizer: for the end token and stop strings.
        max_rows: sequences generated at once.
        cache_bytes: what the key-value cache may take. By default a sampling's takes 2 GiB on a CPU, and half of what
            a GPU has free, at most 8 GiB; that of the conversations half of what is free when the first one begins.
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
        self.cache_bytes = cache_bytes
        self.context = context_of(model)
        self._plain = plain_model(model)
        self._stops = StopStrings(tokenizer)
        self._ends = sorted(end_tokens(tokenizer, self._plain.generation_config))

    @cached_property
    def _shape(self) -> TokenShape:
        return TokenShape.of(self._plain)

    @cached_property
    def sessions(self) -> Sessions:
        """The conversations of :meth:`take_turns`."""
        return Sessions(RowPool(self._shape, self.cache_bytes or free_bytes(self._shape.device) // 2))

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
            capacity = max(self._places(len(ids), count, sampling) for ids in chosen)
            block = Block(self._shape, len(chunk), capacity)
            rows = [block.take() for _ in chunk]
            samplings = [[replace(sampling, seed=seed) for seed in seeds[place]] for place in chunk]
            answers = self._answers(rows, chosen, [0] * len(chunk), samplings)
            for number, place in enumerate(chunk):
                results[place] = answers[number * count : (number + 1) * count]
        return results

    def complete(self, requests: Sequence[tuple[str, Sequence[int], Sampling]]) -> list[Generated]:
        """:meth:`take_turns` of all ``requests``, as many of them at once as there is room for."""
        answers = self.extend([(session, ids, [sampling]) for session, ids, sampling in requests])
        return [answer for [answer] in answers]

    def extend(self, requests: Sequence[tuple[str, Sequence[int], Sequence[Sampling]]]) -> list[list[Generated]]:
        """An answer for each sampling of each request (session, all tokens so far, samplings).

        The session keeps the keys and values of the request's tokens, and of its answer if there is only one. Of the
        session's next request only what follows the longest common prefix is computed.

        Raises:
            ValueError: as :meth:`take_turns`.
        """
        results: dict[int, list[Generated]] = {}
        while len(results) < len(requests):
            rest = [i for i in range(len(requests)) if i not in results]
            answers = self._turns([requests[i] for i in rest], wait=False)
            results |= {i: answer for i, answer in zip(rest, answers, strict=True) if answer is not None}
        return [results[i] for i in range(len(requests))]

    def take_turns(
        self, requests: Sequence[tuple[str, Sequence[int], Sampling]], wait: bool = True
    ) -> list[Generated | None]:
        """The next turn of each conversation (session, all tokens so far, sampling); None where it has to wait for room
        (:class:`retro.models.sessions.Sessions`): ask for it again with the next turns.

        Of a new prompt only what follows its longest common prefix with the conversation so far is computed. An empty
        session is forgotten at once.

        Args:
            wait: whether conversations may be waited for that are held and have no request here.

        Raises:
            ValueError: for an empty prompt or one that leaves no room in the model's context, naming the lengths.
        """
        answers = self._turns([(session, ids, [sampling]) for session, ids, sampling in requests], wait)
        return [None if answer is None else answer[0] for answer in answers]

    @torch.inference_mode()
    def _turns(
        self, requests: Sequence[tuple[str, Sequence[int], Sequence[Sampling]]], wait: bool
    ) -> list[list[Generated] | None]:
        for _, ids, _ in requests:
            self.check_length(len(ids))
        results: list[list[Generated] | None] = [None] * len(requests)
        sharing = []
        for i, (_, ids, samplings) in enumerate(requests):
            if all(self._shares(len(ids), sampling) for sampling in samplings):
                sharing.append(i)
            else:
                results[i] = self._generate(ids, samplings)
        turns = [
            Request(session, np.asarray(ids, dtype=np.int64), self._need(len(ids), samplings))
            for session, ids, samplings in (requests[i] for i in sharing)
        ]
        placed = self.sessions.place(turns, self.max_rows, not wait)
        chosen = sorted(
            ((own, i) for own, i in zip(placed, sharing, strict=True) if own is not None),
            key=lambda pair: (id(pair[0].row.block), pair[0].row.index),
        )
        if chosen:
            rows, ids, known = zip(*((own.row, own.ids, own.known) for own, _ in chosen), strict=True)
            answers = iter(self._answers(rows, ids, known, [requests[i][2] for _, i in chosen]))
            for own, i in chosen:
                found = results[i] = [next(answers) for _ in requests[i][2]]
                # The last token was drawn, not fed. Several answers lie side by side in the row: none is its content.
                self.sessions.keep(own, found[0].ids[:-1] if len(found) == 1 else [])
        return results

    def check_length(self, tokens: int) -> None:
        """Raise ValueError for a prompt that the model cannot continue."""
        if tokens == 0:
            raise ValueError("an empty prompt cannot be continued: give at least one token")
        if tokens >= self.context:
            raise ValueError(
                f"a prompt of {tokens} tokens leaves no room in the model's context of {self.context} tokens"
            )

    def _shares(self, length: int, sampling: Sampling) -> bool:
        """Whether a prompt of ``length`` tokens with its answer can use the key-value cache."""
        return shares_prompts(self._plain, "sampling", min(length + sampling.max_tokens, self.context))

    def _generate(self, prompt: Sequence[int], samplings: Sequence[Sampling]) -> list[Generated]:
        room = self.context - len(prompt)
        return generate_plainly(self._plain, prompt, samplings, room, self._ends, self._stops)

    def _rows(self, need: int) -> int:
        budget = self.cache_bytes or _sampling_bytes(self._shape.device)
        return max(1, min(self.max_rows, budget // self._shape.row_bytes(need)))

    def _places(self, length: int, count: int, sampling: Sampling) -> int:
        """Places of a row that holds a prompt and all but the last token of each of its samples."""
        return length + count * (min(sampling.max_tokens, self.context - length) - 1)

    def _need(self, length: int, samplings: Sequence[Sampling]) -> int:
        """Places of a row that holds a prompt and its samples."""
        return length + sum(min(sampling.max_tokens, self.context - length) for sampling in samplings)

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

    def _answers(
        self,
        rows: Sequence[Row],
        prompts: Sequence[Ints],
        known: Sequence[int],
        samplings: Sequence[Sequence[Sampling]],
    ) -> list[Generated]:
        """Draw samples behind ``prompts``, of which ``rows`` hold the first ``known`` tokens: prompt by prompt.

        Args:
            rows: all rows of a block one after another, in order.
            samplings: of each prompt's samples.
        """
        tails, groups = [ids[start:] for ids, start in zip(prompts, known, strict=True)], query_groups(self._plain)
        hidden = []
        for fed in prompt_passes(self._shape, rows, tails, known, groups):
            hidden.append(feed(self.model, fed.tokens, fed.positions, fed.parts)[fed.last])
        return self._decode(rows, torch.cat(hidden), [len(ids) for ids in prompts], samplings, groups)

    def _decode(
        self,
        rows: Sequence[Row],
        hidden: Tensor,
        lengths: Sequence[int],
        samplings: Sequence[Sequence[Sampling]],
        groups: int,
    ) -> list[Generated]:
        """Draw the samples of ``rows``, which hold prompts of ``lengths``, from the ``hidden`` states (R, H) of the
        prompts' last tokens.

        A step moves three small arrays between host and device: what was drawn, where it goes, the numbers to draw by.
        """
        device = self._shape.device
        prompts, counts = np.array(lengths), np.array([len(row) for row in samplings])
        flat = list(chain(*samplings))
        room = np.minimum([sampling.max_tokens for sampling in flat], self.context - prompts.repeat(counts))
        running = Running(flat, room, self._ends, self._stops)
        drawing = RowSamplings.of(flat, device)
        shared = SharedRows(self._shape, rows, prompts, counts, groups)
        owners = torch.from_numpy(np.arange(len(prompts)).repeat(counts)).to(device)
        logits = logits_of(self.model, hidden)[owners]  # (S, V)
        while True:
            tokens, log_probs = draw(logits, drawing, running.step)
            drawn = torch.stack([tokens.double(), log_probs]).cpu().numpy()
            going = running.add(drawn[0].astype(np.int64), drawn[1])
            if not len(going):
                return running.results()
            if len(going) < len(tokens):
                index = torch.from_numpy(going).to(device)
                tokens, drawing = tokens[index], drawing.take(going, index)
                shared.keep(running.samples)
            positions, parts = shared.feed()
            logits = logits_of(self.model, feed(self.model, tokens, positions, parts))


def context_of(model: PreTrainedModel) -> int:
    """The longest sequence (tokens) that the model takes."""
    return context_tokens(plain_model(model).config) or 2**31


def _sampling_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 2 * 2**30
    return min(torch.cuda.mem_get_info(device)[0] // 2, _GPU_CACHE_BYTES)
