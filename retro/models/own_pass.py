"""A base's own forward pass of one sequence, with which all other ways of computing are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.models.backbone import in_its_dtype, plain_model
from retro.models.generation import context_of

_LENGTHS = ((11, (5, 2, 7)), (6, (3, 4)))
"""The lengths of the prompts, and of the responses to each."""
_ANSWER = 6


@dataclass(frozen=True)
class Texts:
    """Prompts and responses of ordinary tokens."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    answer: int
    """The number of tokens that are sampled behind a prompt."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Texts:
        """Texts that are always the same for a base, and short enough for its context."""
        size = min(len(tokenizer), int(model.config.get_text_config().vocab_size))
        most = max(1, context_of(model) // 4)  # the context must have room for two prompts and two answers
        special = set(tokenizer.all_special_ids)
        ordinary = [token for token in range(size) if token not in special]
        draw = random.Random(0)

        def some(count: int) -> list[int]:
            return [draw.choice(ordinary) for _ in range(min(count, most))]

        prompts = [some(length) for length, _ in _LENGTHS]
        return cls(prompts, [[some(length) for length in group] for _, group in _LENGTHS], min(_ANSWER, most))

    @property
    def longest(self) -> int:
        """The number of tokens of the longest prompt with one of its responses."""
        return max(
            len(prompt) + max(map(len, group)) for prompt, group in zip(self.prompts, self.responses, strict=True)
        )


def own_log_probs(model: nn.Module, prompt: Sequence[int], response: Sequence[int]) -> tuple[Tensor, float]:
    """The log-probabilities of a response's tokens (L,), by the model's own forward pass of this sequence alone, and
    the standard deviation of all log-probabilities at these positions."""
    plain = plain_model(model)
    ids = torch.tensor([[*prompt, *response]], device=plain.device)
    with in_its_dtype(plain):
        logits = plain(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logs = logits.double().log_softmax(-1)  # (L, V)
    chosen = logs.gather(-1, torch.tensor(response, device=logs.device)[:, None])[:, 0]
    return chosen, float(logs[logs.isfinite()].std())  # a padded vocabulary may have impossible tokens


def relative_error(found: Sequence[Tensor], expected: Sequence[tuple[Tensor, float]]) -> float:
    """The root mean square of ``found`` − ``expected`` over all tokens, relative to the spread; NaN if any is NaN."""
    errors = torch.cat([(own.double() - log_probs) for own, (log_probs, _) in zip(found, expected, strict=True)])
    spread = sum(spread for _, spread in expected) / len(expected)
    return float(errors.square().mean().sqrt()) / spread if spread > 0 else float("nan")


def rows(values: Tensor, mask: Tensor) -> list[Tensor]:
    """The values of each row (R, L) where the mask (R, L) is set."""
    return [row[there.to(row.device)] for row, there in zip(values, mask, strict=True)]
