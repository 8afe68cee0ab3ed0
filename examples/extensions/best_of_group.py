"""An algorithm of one's own: imitate the best response of each group (expert iteration, one step at a time).

    ppo:
      algorithm: examples.extensions.best_of_group:BestOfGroup
      options: {passes: 2}
      reward: environment      # and all other keys that every algorithm has

The stage samples the groups, scores them by ``ppo.reward``, logs what ``learn`` returns, asks the guard and keeps
checkpoints with the optimiser's state. An algorithm that compares with the supervised adapter adds ``reference`` to
``needs``; one that learns a value a token adds ``values``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retro.config import PositiveInt, Section
from retro.training.algorithms.base import Algorithm

if TYPE_CHECKING:
    from retro.training.policy.batch import Batch


class BestOfGroupOptions(Section):
    passes: PositiveInt = 1
    """Optimiser steps on each step's best responses."""


class BestOfGroup(Algorithm):
    """Cross-entropy on the response with the highest reward of each group, the mean over tokens."""

    Options = BestOfGroupOptions
    needs = frozenset({"rewards"})

    def learn(self, batch: Batch) -> dict[str, float]:
        import torch  # here: a config that names this algorithm is loaded without torch

        best, first = [], 0  # rows of the batch: the groups stand one after the other
        for group in batch.groups:
            best.append(first + max(range(len(group.rewards)), key=group.rewards.__getitem__))
            first += len(group.rewards)
        chosen = batch.mask.new_zeros(len(batch.mask), 1)
        chosen[best] = True
        learnt = batch.mask & chosen  # (B, L): the tokens of the best responses
        total = batch.reduce(learnt.sum().float())  # over all processes
        for _ in range(self.options.passes):
            loss = torch.zeros(1, device=learnt.device)
            with batch.policy() as policy:
                for rows, outputs in policy(best):
                    mask = learnt[rows, : outputs.log_probs.shape[1]]
                    part = -outputs.log_probs[mask].sum() / total
                    part.backward()
                    loss += part.detach()
            loss, norms = batch.update(loss)
        return {"loss": float(loss), **norms}
