"""Whether the sampler drew from the policy that is trained: their log-probabilities of the same tokens, compared.

PPO's ratio is π_new / π_old with π_old recomputed by the training forward pass. If the tokens came from another
distribution (a stale or wrong adapter, another quantisation, another temperature), the update is biased, and no loss or
reward shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retro.rl.experience import Reduce, Rollout, alone
from retro.training.policy.groups import Response


class SamplerGapError(ValueError):
    """The sampled tokens do not come from the policy that is trained: nothing was learnt from them."""


def sampler_gaps(rollout: Rollout, responses: Sequence[Response]) -> list[float]:
    """Of each response: the mean distance of the sampler's log-probabilities from the recomputed ones, nats a token.

    The two come from different computations (cache and batch against packing); a gap that grows says that one is wrong.
    """
    recomputed = rollout.log_probs.cpu()
    return [
        float((recomputed[row, : len(response.ids)] - torch.tensor(response.log_probs)).abs().mean())
        for row, response in enumerate(responses)
    ]


def require_small_gap(
    gaps: Sequence[float],
    responses: Sequence[Response],
    most: float | None,
    step: int,
    reduce: Reduce = alone,
    device: torch.device | str = "cpu",
) -> None:
    """Stop before the update if the mean gap of a step is too large. The mean is over the tokens of all processes, so
    all of them stop, or none.

    Args:
        gaps: nats a token, one a response of this process.
        most: the bound (``ppo.max_sampler_gap``); None: there is none.

    Raises:
        SamplerGapError: if the mean is above the bound, or is not a number.
    """
    if most is None:
        return
    lengths = [len(response.ids) for response in responses]
    total = float(sum(gap * length for gap, length in zip(gaps, lengths, strict=True)))
    distance, tokens = reduce(torch.tensor([total, float(sum(lengths))], device=device)).tolist()
    mean = distance / max(tokens, 1.0)
    if not mean <= most:  # NaN, too
        raise SamplerGapError(
            f"ppo: in step {step} the sampler's log-probabilities are {mean:.3g} nats a token from those that training "
            f"computes for the same tokens; ppo.max_sampler_gap allows {most:g}. Nothing was learnt from this step. "
            "Check that both sides have the same base, model.dtype and model.quantization, and that a server has the "
            "policy's latest adapter loaded and samples at temperature 1. The same command goes on from the last "
            "checkpoint; a larger ppo.max_sampler_gap (null: no bound) does not start the stage anew."
        )
