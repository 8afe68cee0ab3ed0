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
    """The samplings of a batch's rows: what each draw needs lies on the device, the seeds on the host."""

    seeds: npt.NDArray[np.uint64]  # (B,)
    temperatures: Tensor  # (B,) float64
    top_p: Tensor  # (B,) float64
    all_greedy: bool
    any_greedy: bool
    any_nucleus: bool

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device | str = "cpu") -> RowSamplings:
        greedy = [sampling.temperature == 0 for sampling in samplings]
        return cls(
            np.array([sampling.seed % 2**64 for sampling in samplings], np.uint64),
            torch.tensor([sampling.temperature for sampling in samplings], dtype=torch.float64, device=device),
            torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64, device=device),
            all(greedy),
            any(greedy),
            any(sampling.top_p < 1 for sampling in samplings),
        )

    def take(self, rows: npt.NDArray[np.int64], index: Tensor) -> RowSamplings:
        """Those of ``rows`` (N,) alone; ``index`` holds the same numbers on the device."""
        return RowSamplings(
            self.seeds[rows],
            self.temperatures[index],
            self.top_p[index],
            self.all_greedy,
            self.any_greedy,
            self.any_nucleus,
        )


def draw(logits: Tensor, samplings: RowSamplings, count: int) -> tuple[Tensor, Tensor]:
    """The next token of each row (B,) and its log-probability (B,), float64, from logits (B, V), after ``count`` draws.

    A row at temperature 0 takes the likeliest token; the others invert their distribution function at their own uniform
    number. The log-probability is that of the model at the row's temperature (at 1 for temperature 0), before ``top_p``
    cuts the distribution: what a policy gradient needs, and for ``top_p`` < 1 not quite what was drawn from.
    """
    if samplings.all_greedy:
        best, tokens = logits.max(-1)
        return tokens, (best - logits.logsumexp(-1)).double()
    temperatures = samplings.temperatures
    greedy = temperatures == 0
    scaled = logits / torch.where(greedy, 1, temperatures)[:, None].to(logits.dtype)
    mass = scaled.softmax(-1, dtype=torch.float64)  # (B, V)
    kept = _nucleus(mass, samplings.top_p) if samplings.any_nucleus else mass
    cumulative = kept.cumsum(-1)
    numbers = uniform(samplings.seeds, np.full(len(samplings.seeds), count, np.uint64))
    drawn = torch.from_numpy(numbers).to(mass.device, non_blocking=True)
    tokens = torch.searchsorted(cumulative, (drawn * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    if samplings.any_greedy:
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens, mass.gather(-1, tokens[:, None])[:, 0].log()


def _nucleus(mass: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of likeliest tokens that holds ``top_p`` of the mass (Holtzman et al. 2020); elsewhere 0."""
    ordered, tokens = torch.sort(mass, stable=True, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, tokens, before < top_p[:, None])
    return mass * kept
