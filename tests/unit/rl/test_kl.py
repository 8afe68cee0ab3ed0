"""KL estimators, the penalty inside the reward, and the adaptive coefficient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.rl.kl import k1, k3, next_coefficient, penalised_rewards
from retro.rl.options import KlSection, PpoOptions


def test_estimators_by_hand() -> None:
    log_probs, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(log_probs, reference).item() == pytest.approx(math.log(2))
    assert k3(log_probs, reference).item() == pytest.approx(0.5 - 1 + math.log(2))


@given(logits=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_both_estimators_have_the_kl_as_expectation(logits: list[tuple[float, float]]) -> None:
    policy, reference = torch.tensor(logits, dtype=torch.float64).T.log_softmax(dim=-1)
    exact = sum(math.exp(p) * (p - q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    for estimator in (k1, k3):
        assert (policy.exp() * estimator(policy, reference)).sum().item() == pytest.approx(exact, abs=1e-9)
    assert (k3(policy, reference) >= 0).all()


def test_k1_as_a_loss_has_no_expected_gradient_and_k3_the_right_one() -> None:
    """Why ``kl.loss: k1`` is refused: over actions drawn from π, E[∇ log π] = 0. k3's is that of KL(π_ref ‖ π)."""
    logits = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64).log_softmax(0)

    def expected(estimator) -> torch.Tensor:  # type: ignore[no-untyped-def]
        policy = logits.log_softmax(0)
        (gradient,) = torch.autograd.grad((policy.detach().exp() * estimator(policy, reference)).sum(), logits)
        return gradient

    assert expected(k1).abs().max() < 1e-12
    torch.testing.assert_close(expected(k3), logits.detach().softmax(0) - reference.exp())
    with pytest.raises(ValueError, match="k1 has no expected gradient"):
        PpoOptions(kl=KlSection(loss="k1"))


def test_rewards_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    log_probs = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-2.0, -1.0, math.nan], [-1.0, -1.5, -1.0]])
    rewards = penalised_rewards(torch.tensor([1.0, -1.0]), log_probs, reference, mask, coefficient=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 1.1, 0.0], [0.0, -0.05, -1.0]]))


def test_a_fixed_coefficient_stays() -> None:
    assert next_coefficient(0.05, KlSection(adaptive=False), observed=9.0, responses=96) == 0.05


@pytest.mark.parametrize(
    ("observed", "factor"),
    [(0.1, 1.0), (0.11, 1 + 0.1 * 96 / 1000), (5.0, 1 + 0.2 * 96 / 1000), (0.0, 1 - 0.2 * 96 / 1000)],
)
def test_the_adaptive_coefficient_follows_ziegler(observed: float, factor: float) -> None:
    section = KlSection(adaptive=True, target=0.1, horizon=1000)
    assert next_coefficient(0.2, section, observed, responses=96) == pytest.approx(0.2 * factor)
