"""Passes through the model that feed prompts, and those that decode behind them: which tokens go to which rows.

One call of attention reads neighbouring rows of a block. More rows a call mean fewer calls; but all of them are read up
to the end of the longest one, and rows without a token in between are read for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retro.models.backbone import additive_mask
from retro.models.cache import Row, TokenShape
from retro.models.grouped import Part
from retro.models.running import Ints

_PREFILL_TOKENS = 4096
"""Tokens of one pass that feeds prompts, at most; one prompt may be longer."""
_GAP_BYTES = {"cpu": 2**18}
"""What a call may read for nothing, of one layer: as long as it lasts to make one more call."""
_OTHER_GAP_BYTES = 2**24
_ALIGNMENT = 16
"""Keys are read in multiples of it: CUDA's attention kernels would otherwise copy the mask in every layer."""


@dataclass(frozen=True, slots=True)
class PromptPass:
    """A pass that feeds prompts, or the new ends of prompts."""

    members: list[int]
    """The prompts, in the order of their rows."""
    tokens: Tensor  # (N,)
    positions: Tensor  # (N,)
    last: Tensor  # (members,) where each prompt's last token stands
    parts: list[Part]


def prompt_passes(
    shape: TokenShape, rows: Sequence[Row], tails: Sequence[Ints], starts: Sequence[int], groups: int
) -> Iterator[PromptPass]:
    """Feed ``tails[i]`` to row ``rows[i]`` from place ``starts[i]`` on.

    Args:
        rows: all rows of a block one after another, in order.
        groups: heads that share their keys and values.
    """
    members: list[int] = []
    total = 0
    for i in range(len(rows)):
        if members and total + len(tails[i]) > _PREFILL_TOKENS:
            yield _prompt_pass(shape, rows, tails, starts, groups, members)
            members, total = [], 0
        members.append(i)
        total += len(tails[i])
    if members:
        yield _prompt_pass(shape, rows, tails, starts, groups, members)


def _prompt_pass(
    shape: TokenShape,
    rows: Sequence[Row],
    tails: Sequence[Ints],
    starts: Sequence[int],
    groups: int,
    members: list[int],
) -> PromptPass:
    runs: list[list[int]] = []
    longest = total = 0
    for i in members:
        length = len(tails[i])
        if runs and _next_to(rows[runs[-1][-1]], rows[i]) and bool(starts[i]) == bool(starts[runs[-1][-1]]):
            longest, total = max(longest, length), total + length
            if (len(runs[-1]) + 1) * longest <= 2 * total:  # half of the queries are tokens, at least
                runs[-1].append(i)
                continue
        runs.append([i])
        longest = total = length
    parts: list[Part] = []
    positions: list[Ints] = []
    begin = 0
    for run in runs:
        lengths, first = np.array([len(tails[i]) for i in run]), np.array([starts[i] for i in run])
        queries, count, width = int(lengths.max()), int(lengths.sum()), int((lengths + first).max())
        steps = np.arange(queries)
        there = steps < lengths[:, None]  # (B, Q)
        along = first[:, None] + steps  # (B, Q)
        places, index = along[there], np.array([rows[i].index for i in run]).repeat(lengths)
        grid = slots = mask = None
        if count < there.size:
            slots = np.flatnonzero(there)
            grid = np.zeros(there.size, dtype=np.int64)
            grid[slots] = np.arange(count)
        block = rows[run[0]].block
        if first.any():
            width = _aligned(width, block.capacity)
            seen = torch.arange(width) <= torch.from_numpy(along)[..., None]  # (B, Q, W)
            mask = additive_mask(seen.to(shape.device), shape.dtype)
            mask = mask[:, None].expand(-1, groups, -1, -1).reshape(len(run), 1, groups * queries, width)
        parts.append(
            Part(
                block,
                slice(rows[run[0]].index, rows[run[-1]].index + 1),
                slice(begin, begin + count),
                torch.from_numpy(index).to(shape.device),
                torch.from_numpy(places).to(shape.device),
                queries,
                None if grid is None else torch.from_numpy(grid).to(shape.device),
                None if slots is None else torch.from_numpy(slots).to(shape.device),
                width,
                mask,
                causal=mask is None,
            )
        )
        positions.append(places)
        begin += count
    lengths = np.array([len(tails[i]) for i in members])
    return PromptPass(
        members,
        torch.from_numpy(np.concatenate([tails[i] for i in members])).to(shape.device),
        torch.from_numpy(np.concatenate(positions)).to(shape.device),
        torch.from_numpy(lengths.cumsum() - 1).to(shape.device),
        parts,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """Prompts whose rows are read together, and their running samples."""

    prompts: Ints
    rows: slice
    tokens: slice
    index: Tensor  # (n,)
    queries: int
    samples: Tensor  # (B · groups · Q,) the sample of each query
    grid: Tensor | None
    slots: Tensor | None
    whole: bool
    """Whether each of its rows holds nothing but a prompt and its one sample, which is running."""


class SharedRows:
    """The rows that hold R prompts, and where the prompts' samples stand in them, one behind another.

    Args:
        rows: of each prompt; all rows of a block one after another, in order.
        lengths: tokens of each prompt (R,).
        counts: samples of each prompt, at least one (R,). Samples are numbered prompt by prompt: S in all.
        groups: heads that share their keys and values.
    """

    def __init__(self, shape: TokenShape, rows: Sequence[Row], lengths: Ints, counts: Ints, groups: int) -> None:
        self._shape, self._rows, self._lengths, self._groups = shape, rows, lengths, groups
        self._prompts = np.arange(len(lengths)).repeat(counts)  # (S,) sample → prompt
        self._siblings = bool((counts > 1).any())
        self._index = np.array([row.index for row in rows])  # (R,)
        self._new_block = np.array([not i or rows[i].block is not rows[i - 1].block for i in range(len(rows))])  # (R,)
        self._free = lengths.copy()  # (R,) the first free place of each prompt's row
        self._fed = 0
        ends = torch.from_numpy(lengths[self._prompts]).to(shape.device)
        places = torch.arange(max(row.block.capacity for row in rows), device=shape.device)
        self._seen = additive_mask(places < ends[:, None], shape.dtype)  # (S, capacity) what each sample sees
        self.keep(np.arange(len(self._prompts)))

    def keep(self, samples: Ints) -> None:
        """Continue with ``samples`` (N,) only."""
        self._of = self._prompts[samples]  # (N,)
        self._counts = np.bincount(self._of, minlength=len(self._lengths))  # (R,)
        starts = self._counts.cumsum() - self._counts
        self._ranks = np.arange(len(samples)) - starts[self._of]  # (N,) among the running ones of its prompt
        self._sample = torch.from_numpy(samples).to(self._shape.device)
        self._runs = [self._run(samples, run) for run in self._neighbours(np.flatnonzero(self._counts))]

    def feed(self) -> tuple[Tensor, list[Part]]:
        """A place for the next token of each running sample: the tokens' positions (N,), and the parts of the pass."""
        places = self._free[self._of] + self._ranks
        self._free += self._counts
        positions = self._lengths[self._of] + self._fed
        self._fed += 1
        sent = torch.from_numpy(np.stack([positions, places])).to(self._shape.device, non_blocking=True)
        self._seen[self._sample, sent[1]] = 0
        return sent[0], [self._part(run, sent[1, run.tokens]) for run in self._runs]

    def _part(self, run: _Run, places: Tensor) -> Part:
        block = self._rows[run.prompts[0]].block
        ends = self._free[run.prompts]
        width, mask = int(ends.max()), None
        if not run.whole or (ends != width).any():
            width = _aligned(width, block.capacity)
            mask = self._seen[run.samples, :width].view(run.rows.stop - run.rows.start, 1, -1, width)
        return Part(block, run.rows, run.tokens, run.index, places, run.queries, run.grid, run.slots, width, mask)

    def _neighbours(self, prompts: Ints) -> list[Ints]:
        """Cut ``prompts`` where one lies in another block than the one before, or too far from it."""
        device = self._shape.device.type
        gap = _GAP_BYTES.get(device, _OTHER_GAP_BYTES) // (self._shape.layer_bytes * int(self._free[prompts].max()))
        blocks = self._new_block.cumsum()[prompts]
        far = (np.diff(blocks) > 0) | (np.diff(self._index[prompts]) > 1 + gap)
        return np.split(prompts, np.flatnonzero(far) + 1)

    def _run(self, samples: Ints, prompts: Ints) -> _Run:
        begin, end = np.searchsorted(self._of, [prompts[0], prompts[-1] + 1])
        index, first = self._index[self._of[begin:end]], int(self._index[prompts[0]])
        height, queries = int(self._index[prompts[-1]]) - first + 1, int(self._counts[prompts].max())
        slots = (index - first) * queries + self._ranks[begin:end]
        grid = np.zeros(height * queries, dtype=np.int64)  # what is over repeats the first
        grid[slots] = np.arange(end - begin)
        by_row = samples[begin:end][grid].reshape(height, 1, queries)
        by_query = by_row.repeat(self._groups, axis=1).reshape(-1)
        full = len(grid) == end - begin

        def sent(values: Ints) -> Tensor:
            return torch.from_numpy(values).to(self._shape.device, non_blocking=True)

        return _Run(
            prompts,
            slice(first, first + height),
            slice(int(begin), int(end)),
            sent(index),
            queries,
            sent(by_query),
            None if full else sent(grid),
            None if full else sent(slots),
            full and not self._siblings,
        )


def _next_to(left: Row, right: Row) -> bool:
    return left.block is right.block and left.index + 1 == right.index


def _aligned(width: int, capacity: int) -> int:
    return min(-(-width // _ALIGNMENT) * _ALIGNMENT, capacity)
