"""The loss terms against hand-computed values, gradients and a slow float64 loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.rl.losses import clipped_surrogate, clipped_value_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 1.0),  # rising further is not paid for
        (0.5, 2.0, -1.0, 0.0),  # but coming back is
        (0.5, -2.0, 1.6, 1.0),
        (1.5, -2.0, 3.0, 0.0),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    value, mask = clipped_surrogate(log_probs, torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    assert value.item() == pytest.approx(loss)
    assert mask.item() == clipped
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    assert gradient.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


@pytest.mark.parametrize(
    ("value", "loss", "clipped"),
    [(0.1, 0.5 * 0.9**2, 0.0), (0.5, 0.5 * 0.8**2, 1.0), (-0.5, 0.5 * 1.5**2, 0.0)],
)
def test_value_loss_by_hand(value: float, loss: float, clipped: float) -> None:
    prediction = torch.tensor([value], requires_grad=True)
    result, mask = clipped_value_loss(prediction, torch.zeros(1), torch.ones(1), clip=0.2)
    assert result.item() == pytest.approx(loss)
    assert mask.item() == clipped


FLOATS = st.floats(-3, 3)


@given(rows=st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=8), clip=st.floats(0.01, 0.5))
@settings(max_examples=80, deadline=None)
def test_against_loops(rows: list[tuple[float, float, float]], clip: float) -> None:
    a, b, c = torch.tensor(rows, dtype=torch.float64).T
    policy, _ = clipped_surrogate(a, b, c, clip)
    value, _ = clipped_value_loss(a, b, c, clip)
    for index, (x, old, target) in enumerate(rows):
        ratio = math.exp(x - old)
        surrogate = min(ratio * target, min(max(ratio, 1 - clip), 1 + clip) * target)
        assert policy[index].item() == pytest.approx(-surrogate, rel=1e-9, abs=1e-9)
        near = old + min(max(x - old, -clip), clip)
        assert value[index].item() == pytest.approx(0.5 * max((x - target) ** 2, (near - target) ** 2), rel=1e-9)
    assert torch.all(policy >= -torch.exp(a - b) * c - 1e-12)  # the clip is pessimistic: never a smaller loss
