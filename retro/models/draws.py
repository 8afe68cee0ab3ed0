"""Drawing tokens: each row by its own seed and its own count, so that no draw depends on who else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retro.types import Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seeds: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, count): SplitMix64 (Steele et al. 2014) as a counter-based generator."""
    with np.errstate(over="ignore"):
        z = _mix(seeds + _GOLDEN) + (counts + np.uint64(1)) * _GOLDEN
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass
class RowSamplings:
    """The samplings of a batch's rows, as arrays."""

    temperatures: npt.NDArray[np.float32]  # (B,)
    top_p: npt.NDArray[np.float32]  # (B,)
    seeds: npt.NDArray[np.uint64]  # (B,)

    @classmethod
    def of(cls, samplings: Sequence[Sampling], seeds: Sequence[int] | None = None) -> RowSamplings:
        """``seeds`` replace the samplings' own."""
        chosen = [sampling.seed for sampling in samplings] if seeds is None else seeds
        return cls(
            np.array([sampling.temperature for sampling in samplings], np.float32),
            np.array([sampling.top_p for sampling in samplings], np.float32),
            np.array([seed % 2**64 for seed in chosen], np.uint64),
        )

    def take(self, rows: npt.NDArray[np.int64]) -> RowSamplings:
        return RowSamplings(self.temperatures[rows], self.top_p[rows], self.seeds[rows])


def draw(logits: Tensor, samplings: RowSamplings, counts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The next token of each row (B,) and its log-probability (B,), from logits (B, V).

    A row at temperature 0 takes the likeliest token; the others invert their distribution function at their own uniform
    number. The log-probability is that of the model at the row's temperature (at 1 for temperature 0), before ``top_p``
    cuts the distribution: what a policy gradient needs, and for ``top_p`` < 1 not quite what was drawn from.
    """
    greedy = samplings.temperatures == 0
    if greedy.all():
        tokens = logits.argmax(-1)
        return tokens, _log_prob(logits, tokens)
    temperatures = torch.from_numpy(np.where(greedy, np.float32(1), samplings.temperatures)).to(logits.device)
    scaled = logits / temperatures[:, None].to(logits.dtype)
    mass = scaled.double().softmax(-1)  # (B, V)
    if (samplings.top_p < 1).any():
        mass = _nucleus(mass, torch.from_numpy(samplings.top_p).to(mass))
    cumulative = mass.cumsum(-1)
    drawn = torch.from_numpy(uniform(samplings.seeds, counts.astype(np.uint64))).to(mass)
    tokens = torch.searchsorted(cumulative, (drawn * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    if greedy.any():
        tokens = torch.where(torch.from_numpy(greedy).to(tokens.device), logits.argmax(-1), tokens)
    return tokens, _log_prob(scaled, tokens)


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def _nucleus(mass: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of likeliest tokens that holds ``top_p`` of the mass (Holtzman et al. 2020); elsewhere 0."""
    ordered, tokens = torch.sort(mass, stable=True, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, tokens, before < top_p[:, None])
    return mass * kept
