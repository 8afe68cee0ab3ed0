"""Generation by the model's own forward pass and cache: slower than our key-value memory, and right for every model.

For architectures whose caches are of another kind (latent keys, convolutions, recurrent states) and for sequences
longer than a sliding window. One prompt at a time, one row for each of its samples: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from retro.models.backbone import in_its_dtype
from retro.models.draws import RowSamplings, draw
from retro.models.running import Generated, Running
from retro.models.stopping import StopStrings
from retro.types import Sampling


def generate_plainly(
    model: PreTrainedModel,
    prompt: Sequence[int],
    samplings: Sequence[Sampling],
    room: int,
    ends: Collection[int],
    stops: StopStrings,
) -> list[Generated]:
    """An answer to ``prompt`` for each of ``samplings``, drawn as :class:`retro.models.generation.Engine` draws it.

    Args:
        model: a plain transformers causal LM, with its adapters in place.
        room: tokens left in the model's context, at least one.
        ends: tokens that end an answer.
    """
    limits = np.minimum([sampling.max_tokens for sampling in samplings], room)
    drawing = _Drawing(Running(samplings, limits, ends, stops), RowSamplings.of(samplings, model.device))
    ids = torch.tensor([list(prompt)] * len(samplings), device=model.device)  # (S, P)
    settings = GenerationConfig(max_new_tokens=int(limits.max()), do_sample=False, use_cache=True, pad_token_id=0)
    with in_its_dtype(model):
        cast(Any, model).generate(  # of a mixin that causal LMs have and their common base has not
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([drawing.finished]),
        )
    return drawing.running.results()


class _Drawing(LogitsProcessor):
    """Draws the next token of each running sample and leaves ``generate`` no other choice."""

    def __init__(self, running: Running, samplings: RowSamplings) -> None:
        self.running = running
        self.finished = _Finished(running)
        self._samplings = samplings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (S, V) that are 0 for the token drawn and −∞ for the others; finished samples repeat token 0."""
        samples = self.running.samples
        rows = torch.from_numpy(samples).to(scores.device)
        tokens, log_probs = draw(scores[rows], self._samplings.take(samples, rows), self.running.step)
        chosen = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        chosen[rows] = tokens
        self.running.add(tokens.cpu().numpy(), log_probs.cpu().numpy())
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


class _Finished(StoppingCriteria):
    """True for every row once no sample is running."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((len(input_ids),), not len(self._running.samples), device=input_ids.device)
