"""Floating-point operations that a PPO update needs, counted from shapes: what a measured rate is held against.

A multiplication and its addition are two. Counted is what the mathematics asks for, whatever is done: nothing for what
checkpointing computes again, for masked attention, for padding, for norms, softmax and other work without a matrix.
The base is frozen: its weights cost 2 a token forward and 2 backward (the gradient of the inputs), LoRA's 2 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes, as far as its matrix products depend on them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """From a transformers ``LlamaConfig``."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            size,
            config.vocab_size,
        )

    @property
    def linear(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's seven linear maps: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        return (
            (self.hidden, queries),
            (self.hidden, keys),
            (self.hidden, keys),
            (queries, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def linear_parameters(self) -> int:
        """N: weights of all layers' linear maps, without embeddings and output layer."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear)

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all linear maps."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self.linear)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and the lengths of its responses, in tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """In one sequence, the prompt once."""
        return self.prompt + sum(self.responses)

    @property
    def visible_pairs(self) -> int:
        """Pairs of a token and one that it sees, itself included: the prompt's, then each response's own and its view
        of the prompt."""
        prompt = self.prompt * (self.prompt + 1) // 2
        return prompt + sum(length * self.prompt + length * (length + 1) // 2 for length in self.responses)

    def alone(self) -> list[Group]:
        """Each response behind a prompt of its own."""
        return [Group(self.prompt, (length,)) for length in self.responses]


def update_flops(shape: Shape, groups: Sequence[Group], rank: int) -> int:
    """Of one epoch: a forward and a backward pass over ``groups``, LoRA of ``rank`` on all linear maps.

    Logits are counted at response tokens alone. Attention: queries by keys, and weights by values; forward both once,
    backward both twice.
    """
    tokens = sum(group.tokens for group in groups)
    written = sum(sum(group.responses) for group in groups)
    pairs = sum(group.visible_pairs for group in groups)
    base = 4 * (shape.linear_parameters * tokens + shape.hidden * shape.vocabulary * written)
    lora = 6 * shape.lora_parameters(rank) * tokens
    attention = (4 + 8) * shape.layers * shape.heads * shape.head_size * pairs
    return base + lora + attention
