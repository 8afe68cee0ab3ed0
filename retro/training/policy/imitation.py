"""The imitation anchor: a further loss, the cross-entropy of reflections that the stage ``sft`` imitates."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retro.training.policy.models import Packs, PolicyModels

if TYPE_CHECKING:
    from retro.buffer.views import RatedReflection


class Imitation:
    """The SFT set, of which each optimiser step draws a batch.

    Args:
        models: whose policy learns.
        examples: the set, equal on all processes. Their tokens are kept.
        rank, processes: this process has every ``processes``-th reflection of a batch, from ``rank`` on.
    """

    def __init__(
        self, models: PolicyModels, examples: Iterable[RatedReflection], rank: int = 0, processes: int = 1
    ) -> None:
        self._models, self._rank, self._processes = models, rank, processes
        self._prompts: list[array[int]] = []
        self._responses: list[array[int]] = []
        for example in examples:
            self._prompts.append(array("i", models.encoder.prompt(example.context.episode)))
            self._responses.append(array("i", models.encoder.response(example.reflection)))

    def backward(self, weight: float, size: int, seed: int) -> Tensor:
        """Add the gradient of ``weight`` times the cross-entropy of a batch to the policy's.

        The cross-entropy is a mean over the tokens of the batch's reflections, prompts left out. Call it on every
        process, inside the ``with`` of :meth:`PolicyModels.learning`.

        Args:
            size: reflections in the batch, over all processes; the whole set if it has fewer.
            seed: that of the batch; equal on all processes.

        Returns:
            This process's share of the cross-entropy, nats a token, shape ().
        """
        chosen = random.Random(seed).sample(range(len(self._prompts)), min(size, len(self._prompts)))
        tokens = sum(len(self._responses[index]) for index in chosen)
        own = chosen[self._rank :: self._processes]
        responses = [self._responses[index].tolist() for index in own]
        prompts = [self._prompts[index].tolist() for index in own]
        total = torch.zeros((), device=self._models.base.device)
        policy = self._models.differentiable(Packs(prompts, [[response] for response in responses]))
        for rows, outputs in policy(range(len(own))):
            written = [outputs.log_probs[place, : len(responses[row])] for place, row in enumerate(rows)]
            loss = -torch.cat(written).sum() / tokens
            (weight * loss).backward()
            total += loss.detach()
        return total
