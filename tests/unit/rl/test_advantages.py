"""Advantages against hand-computed cases and slow float64 loops."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro import ratings
from retro.rl.advantages import gae, group_normalised, leave_one_out, over_chains, whiten

HUNDREDTHS = st.integers(-500, 500).map(lambda value: value / 100)
"""Values that are equal or clearly not, as scores are."""
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def responses(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, mask


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 as it is written: Â_t = Σ_l (γλ)^l δ_{t+l}."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.5]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.5)
    # δ = (−.25, .25, .5); Â_2 = .5, Â_1 = .25 + .5·.5 = .5, Â_0 = −.25 + .5·.5 = 0
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.5, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.5, 0.75, 1.0]]))


@given(lengths=LENGTHS, seed=st.integers(0, 2**31), gamma=st.floats(0, 1), lam=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_gae_is_the_sum_of_discounted_errors(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = responses(lengths, seed)
    poisoned = torch.where(mask, rewards, math.nan), torch.where(mask, values, math.nan)
    advantages, returns = gae(*poisoned, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = slow_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[row, :length].tolist(), strict=True)], abs=1e-12
        )
        assert advantages[row, length:].eq(0).all()
        assert returns[row, length:].eq(0).all()


@given(lengths=LENGTHS, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_gae_with_lambda_one_is_reward_to_go_minus_value(lengths: list[int], seed: int) -> None:
    rewards, values, mask = responses(lengths, seed)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_go - values) * mask)


def test_leave_one_out_by_hand() -> None:
    totals = torch.tensor([1.0, 5.0, 0.0, 3.0, 0.0])
    expected = torch.tensor([1.0 - 1.5, 5.0 - 0.0, 0.0 - 2.0, 3.0 - 0.5, 0.0 - 5.0])
    torch.testing.assert_close(leave_one_out(totals, [7, 2, 7, 7, 2]), expected)


@given(
    totals=st.lists(st.lists(HUNDREDTHS, min_size=2, max_size=5), min_size=1, max_size=4),
    shift=st.floats(-3, 3),
)
@settings(max_examples=60, deadline=None)
def test_group_baselines_against_loops(totals: list[list[float]], shift: float) -> None:
    flat = torch.tensor([value for group in totals for value in group], dtype=torch.float64)
    labels = [index for index, group in enumerate(totals) for _ in group]
    loo = leave_one_out(flat, labels)
    expected = [v - (sum(group) - v) / (len(group) - 1) for group in totals for v in group]
    assert loo.tolist() == pytest.approx(expected, abs=1e-9)
    rated = [rating for group in totals for rating in ratings.group_normalised(group)]
    assert group_normalised(flat, labels).tolist() == pytest.approx(rated, abs=1e-6)
    torch.testing.assert_close(leave_one_out(flat + shift, labels), loo)  # a baseline takes any constant away


def test_group_normalisation_by_hand() -> None:
    scores = torch.tensor([0.6, 0.3, 0.0])  # mean .3, deviation over n − 1 .3
    torch.testing.assert_close(group_normalised(scores, [0, 0, 0]), torch.tensor([1.0, 0.0, -1.0]), atol=1e-5, rtol=0)


def test_each_chain_counts_once_however_long_it_is() -> None:
    """Returns {1, 0} of chains of {1, 3} responses: the mean is 1/2; over responses it would be 1/4."""
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0])
    means = over_chains(lambda sums, groups: sums.mean().expand_as(sums), scores, [0] * 4, [0, 1, 1, 1])
    assert means.tolist() == [0.5] * 4
    advantages = over_chains(group_normalised, scores, [0] * 4, [0, 1, 1, 1])
    torch.testing.assert_close(advantages, torch.tensor([0.5, -0.5, -0.5, -0.5]) / 0.5**0.5, atol=1e-5, rtol=0)


@given(
    chains=st.lists(st.lists(HUNDREDTHS, min_size=1, max_size=4), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_lengths_do_not_change_the_advantages_of_chains(chains: list[list[float]], order: random.Random) -> None:
    """A chain has the advantage that its sum would have as one response, and so has each of its responses."""
    sums = torch.tensor([sum(chain) for chain in chains], dtype=torch.float64)
    rows = [(number, value) for number, chain in enumerate(chains) for value in chain]
    order.shuffle(rows)
    values = torch.tensor([value for _, value in rows], dtype=torch.float64)
    numbers = [number for number, _ in rows]
    for compare in (group_normalised, leave_one_out):
        expected = compare(sums, [7] * len(chains))[numbers]
        torch.testing.assert_close(over_chains(compare, values, [7] * len(rows), numbers), expected)


def test_a_group_of_one_has_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), [0, 0, 1])


def test_a_process_without_responses_has_no_advantages() -> None:
    assert leave_one_out(torch.zeros(0), ()).shape == (0,)
    assert group_normalised(torch.zeros(0), ()).shape == (0,)
    assert whiten(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool)).shape == (0, 0)


@given(lengths=LENGTHS, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_whitening_counts_real_tokens_alone(lengths: list[int], seed: int) -> None:
    values, _, mask = responses([*lengths, 3], seed)
    white = whiten(torch.where(mask, values, math.nan), mask)
    real = values[mask]
    torch.testing.assert_close(white[mask], (real - real.mean()) / (real.var(unbiased=False) + 1e-8).sqrt())
    assert white[~mask].eq(0).all()


def test_whitening_over_two_processes_is_whitening_of_one() -> None:
    values, _, mask = responses([3, 5, 2, 6], seed=1)
    together = whiten(values, mask)
    halves = [(values[:1], mask[:1]), (values[1:], mask[1:])]

    def reduce_for(part: int):  # type: ignore[no-untyped-def]
        """What an all-reduce would add: the other half's contribution, in the order in which whiten asks."""
        other_values, other_mask = halves[1 - part]
        total = [torch.stack([mask.sum().double(), values[mask].sum()])]

        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape == (2,):
                return total[0]
            centred = other_values - total[0][1] / total[0][0]
            return tensor + (centred.square() * other_mask).sum()

        return reduce

    parts = [whiten(*halves[part], reduce_for(part)) for part in range(2)]
    torch.testing.assert_close(torch.cat(parts), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_that_ties_up_to_rounding_has_no_advantage(dtype: torch.dtype) -> None:
    average = (0.2 + 0.2 + 0.2) / 3
    above = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0)).item()  # the float32 beside .3
    tied = [[average, 0.2, 0.2, average], [0.3] * 4, [above if dtype == torch.float32 else 0.3, 0.3, 0.3, 0.3]]
    values = torch.tensor([*(value for group in tied for value in group), 0.0, 1.0, 0.0, 0.0], dtype=dtype)
    labels = [index // 4 for index in range(16)]
    for advantages in (group_normalised(values, labels), leave_one_out(values, labels)):
        assert advantages[:12].eq(0).all()
        assert advantages[13] > 0.9 and advantages[12] < 0
