"""Draws: uniform numbers from counters, temperatures, nuclei."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from retro.models.draws import RowSamplings, draw, uniform
from retro.types import Sampling, derive_seed


def test_uniform_numbers_are_uniform_and_independent_over_seeds_and_counts() -> None:
    seeds = np.array([derive_seed("test", index) for index in range(400)], np.uint64)
    counts = np.arange(50, dtype=np.uint64)
    numbers = uniform(np.repeat(seeds, 50), np.tile(counts, 400))
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    table = numbers.reshape(400, 50)
    for pairs in ((table[:, :-1], table[:, 1:]), (table[:-1], table[1:])):
        assert abs(np.corrcoef(pairs[0].ravel(), pairs[1].ravel())[0, 1]) < 0.03
    neighbours = uniform(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64))
    assert stats.kstest(neighbours, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_frequencies_are_those_of_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    count = 20_000
    samplings = RowSamplings.of([Sampling(temperature, top_p, seed=seed) for seed in range(count)])
    tokens, log_probs = draw(logits.expand(count, 5), samplings, 0)
    full = (logits / temperature).softmax(-1).numpy()
    expected = full.copy()
    if top_p < 1:
        expected[[1, 3, 4]] = 0  # the two likeliest hold .57 + .21
        expected /= expected.sum()
    observed = np.bincount(tokens.numpy(), minlength=5)
    assert not observed[expected == 0].any()
    kept = expected > 0
    assert stats.chisquare(observed[kept], expected[kept] * count).pvalue > 1e-3
    assert log_probs.numpy() == pytest.approx(np.log(full)[tokens], abs=1e-5)


def test_temperature_zero_is_the_likeliest_token_also_beside_others() -> None:
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    greedy = RowSamplings.of([Sampling()] * 6)
    tokens, log_probs = draw(logits, greedy, 0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).amax(-1), check_dtype=False)
    mixed = RowSamplings.of([Sampling(temperature=float(row % 2), seed=row) for row in range(6)])
    beside, beside_log_probs = draw(logits, mixed, 0)
    assert torch.equal(beside[::2], tokens[::2])
    assert beside_log_probs[::2].numpy() == pytest.approx(log_probs[::2].numpy(), abs=1e-6)


def test_a_tiny_nucleus_holds_the_likeliest_token() -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    samplings = RowSamplings.of([Sampling(1.0, 1e-6, seed=seed) for seed in range(50)])
    tokens, _ = draw(logits, samplings, 0)
    assert torch.equal(tokens, logits.argmax(-1))
