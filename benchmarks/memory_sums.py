"""From bytes of a few layers and tokens to those of a whole model and a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.memory_measuring import Pass, Shape, mask_bytes

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Law:
    """bytes = constant + layer · L + token · T + token_layer · T · L: the least squares of passes."""

    constant: float
    layer: float
    token: float
    token_layer: float
    misfit: float
    """The largest share of a measured pass by which the law misses it."""

    @classmethod
    def fit(cls, passes: Sequence[Pass], figures: Sequence[int]) -> Law:
        rows = [[1.0, p.layers, p.tokens, p.layers * p.tokens] for p in passes]
        matrix, wanted = np.array(rows), np.array(figures, dtype=float)
        scale = np.abs(matrix).max(axis=0)
        solved, _, rank, _ = np.linalg.lstsq(matrix / scale, wanted, rcond=None)
        if rank < matrix.shape[1]:
            raise ValueError("the passes do not tell tokens from layers: two depths need two lengths each")
        found = solved / scale
        misfit = float(np.abs(matrix @ found / wanted - 1).max())
        return cls(*map(float, found), misfit=misfit)

    def at(self, layers: int, tokens: int) -> float:
        return self.constant + self.layer * layers + self.token * tokens + self.token_layer * layers * tokens


@dataclass(frozen=True, slots=True)
class Work:
    """What the backward pass takes above what it found held, while it is in its first layer: constant + token · T."""

    constant: float
    """With the largest weight made of its 4 bits, whether or not the rest is at its worst just then."""
    token: float
    bend: float
    """The largest share by which a pass between the shortest and the longest is off the line through these two: the
    maximum over moments that are each linear in tokens is convex, so that a bend tells of a steeper one to come."""
    by_depth: float
    """The largest difference between passes of equal tokens and two layers or more, as a share of their peaks."""

    @classmethod
    def fit(cls, passes: Sequence[Pass]) -> Work:
        """Of passes of two layers or more: the single layer of one has no gradient to hand on."""
        deep = [(item, item.peak - item.held) for item in passes if item.layers >= 2]
        line = sorted(((item, extra) for item, extra in deep if item.layers == 2), key=lambda pair: pair[0].tokens)
        (shortest, least), (longest, most) = line[0], line[-1]
        token = (most - least) / (longest.tokens - shortest.tokens)
        bend = max(abs(least + token * (item.tokens - shortest.tokens) - extra) / extra for item, extra in line)
        same = [(item, extra) for item, extra in deep if item.tokens == shortest.tokens]
        apart = max(abs(extra - least) / item.peak for item, extra in same)
        scratch = max(item.scratch for item in passes)
        return cls(least - token * shortest.tokens + scratch, token, bend, apart)

    def at(self, tokens: int) -> float:
        return self.constant + self.token * tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward and backward pass of the update: so many equal trees, each a prompt and its group's responses."""

    name: str
    prompt: int
    group: int
    response: int
    trees: int
    card: int
    """What it must fit, bytes."""

    @property
    def tokens(self) -> int:
        return self.trees * (self.prompt + self.group * self.response)

    @property
    def written(self) -> int:
        """Tokens of responses."""
        return self.trees * self.group * self.response


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to hold and train the model, and what was measured of it. Bytes; layers' figures are of one layer."""

    quantization: Literal["none", "nf4"]
    lora: str
    checkpointing: bool
    passes: tuple[Pass, ...]
    ends: int
    """Embedding, output layer, last norm."""
    layer: int
    parameter: float
    """Of a layer's linear weight."""
    adapter: int
    optimiser: int
    cache: float
    """A token of the sampler's keys and values."""
    head: dict[int, int]
    """Peak of log-probabilities and entropies by response tokens, gradients included."""

    @property
    def name(self) -> str:
        base = "NF4" if self.quantization == "nf4" else "bf16"
        return f"{base}, {self.lora}{', checkpointing' if self.checkpointing else ''}"

    @property
    def held(self) -> Law:
        return Law.fit(self.passes, [item.held for item in self.passes])

    @property
    def work(self) -> Work:
        return Work.fit(self.passes)

    @property
    def saved_in_float32(self) -> float:
        """The share of what layers save, by the two deepest passes of equal tokens."""
        few, many = _two_depths(self.passes)
        total = sum(many.saved.values()) - sum(few.saved.values())
        return (many.saved.get("float32", 0) - few.saved.get("float32", 0)) / total

    def of_head(self, tokens: int) -> float:
        """Linear above the two measured counts."""
        (few, less), (many, more) = sorted(self.head.items())
        return less + (tokens - few) * (more - less) / (many - few)


def _two_depths(passes: Sequence[Pass]) -> tuple[Pass, Pass]:
    least = min(item.tokens for item in passes)
    found = sorted((item for item in passes if item.tokens == least), key=lambda item: item.layers)
    return found[-2], found[-1]


@dataclass(frozen=True, slots=True)
class Term:
    """A line of the table."""

    name: str
    formula: str
    bytes: float
    resident: bool = False
    """There from the start of the stage to its end."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


ROLES = 3
"""Policy, reference, reward model."""


def terms(own: Configuration, shape: Shape, batch: Batch) -> list[Term]:
    """What an update holds at its worst moment, and what makes it up; the last term is the sum.

    The output layer's piece and a layer's recomputation are not there at once: the larger counts.
    """
    layers, tokens = shape.layers, batch.tokens
    held, work = own.held, own.work.at(tokens)
    kept = held.at(layers, tokens)
    head = own.of_head(batch.written)
    found = [
        Term("embedding, output layer, last norm", "bf16", own.ends, True),
        Term("decoder layers", f"{layers} × {own.layer:,} B", layers * own.layer, True),
        Term("adapters", f"{ROLES} roles × {layers} × {own.adapter:,} B (float32)", ROLES * layers * own.adapter, True),
        Term("gradients", f"{layers} × {own.adapter:,} B", layers * own.adapter, True),
        Term("AdamW", f"{layers} × {own.optimiser:,} B", layers * own.optimiser, True),
        Term(
            "kept for the backward pass",
            f"{layers} × {tokens:,} × {held.token_layer:,.0f} B + {tokens:,} × {held.token:,.0f} B",
            kept,
        ),
        Term(
            "attention masks (plain way)",
            f"{batch.trees} × {batch.group * batch.response:,} × {batch.tokens // batch.trees:,} × 2 B",
            mask_bytes(batch.prompt, batch.group, batch.response, batch.trees),
        ),
        Term(
            "a layer's backward pass" if work >= head else "log-probabilities",
            f"{tokens:,} × {own.work.token:,.0f} B + {own.work.constant / 2**20:,.0f} MiB"
            if work >= head
            else f"of {batch.written:,} tokens",
            max(work, head),
        ),
    ]
    return [*found, Term("sum", "", sum(term.bytes for term in found))]


def while_sampling(own: Configuration, shape: Shape, batch: Batch) -> Term:
    """What a step holds while it samples the batch: what stays, and a row of keys and values a prompt."""
    resident = sum(term.bytes for term in terms(own, shape, batch) if term.resident)
    cache = batch.tokens * shape.layers * own.cache
    return Term(
        "sum while sampling",
        f"{resident / GIB:.2f} GiB that stay + {batch.tokens:,} × {shape.layers * own.cache:,.0f} B",
        resident + cache,
    )
