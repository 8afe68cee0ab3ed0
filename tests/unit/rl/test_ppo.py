"""The algorithm: experience by hand, the update against an independent one, a bandit with a known optimum."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from retro.rl.experience import Experience, Reduce, Rollout, alone
from retro.rl.gradients import DivergedError
from retro.rl.options import PpoOptions
from retro.rl.ppo import build_experience, describe, equal_groups_fraction, update
from tests.token_world import VOCABULARY, TokenPolicy, first_token, make_rollout, policy_for, section, train


@pytest.mark.parametrize("advantage", ["gae", "rloo", "group"])
def test_the_policy_finds_the_bandits_optimum(advantage: str) -> None:
    model, _ = train(section(advantage=advantage, kl={"coefficient": 0.0}), steps=40)
    assert first_token(model)[3] > 0.97


def test_with_a_kl_penalty_it_finds_the_tilted_reference() -> None:
    """max E[r] − β KL has the optimum π ∝ π_ref exp(r / β): known, and not the greedy one."""
    beta = 0.5
    config = section(advantage="rloo", contexts=64, kl={"coefficient": beta}, whiten_advantages=False)
    model, _ = train(config, steps=150, length=1)
    reward = torch.zeros(VOCABULARY)
    reward[3] = 1.0
    optimum = (first_token(TokenPolicy()).log() + reward / beta).softmax(-1)
    torch.testing.assert_close(first_token(model), optimum, atol=0.05, rtol=0)


def test_the_value_head_learns_what_to_expect() -> None:
    model, _ = train(section(kl={"coefficient": 0.0}), steps=60)
    assert model.value.detach()[VOCABULARY].item() == pytest.approx(1.0, abs=0.15)


def test_experience_by_hand() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    rollout = Rollout(
        mask=mask,
        contexts=(0, 0),
        chains=(0, 1),
        scores=torch.tensor([1.0, 0.0]),
        log_probs=torch.tensor([[-1.0, -1.0], [-2.0, 0.0]]),
        values=torch.tensor([[0.5, 0.5], [0.5, 9.0]]),
        reference_log_probs=torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]),
    )
    config = section(whiten_advantages=False, lam=1.0)
    experience = build_experience(rollout, config, coefficient=0.1)
    torch.testing.assert_close(experience.rewards, torch.tensor([[0.0, 0.9], [0.1, 0.0]]))
    torch.testing.assert_close(experience.returns, torch.tensor([[0.9, 0.9], [0.1, 0.0]]))
    torch.testing.assert_close(experience.advantages, torch.tensor([[0.4, 0.4], [-0.4, 0.0]]))
    loo = build_experience(rollout, section(advantage="rloo", whiten_advantages=False), coefficient=0.1)
    torch.testing.assert_close(loo.advantages, torch.tensor([[0.8, 0.8], [-0.8, 0.0]]))
    facts = describe(experience)
    assert facts["kl"] == pytest.approx((1.0 - 1.0) / 2)
    assert facts["reward"] == pytest.approx((0.9 + 0.1) / 2)
    assert facts["length"] == pytest.approx(1.5)


@pytest.mark.parametrize("advantage", ["rloo", "group"])
def test_where_most_groups_tie_the_one_that_differs_is_not_scaled_up(advantage: str) -> None:
    """Seven of eight groups tie. Their advantages are the noise of the KL penalty, and must stay that small."""
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    scores = torch.zeros(32)
    scores[0] = 0.1
    rollout = make_rollout(model, reference, tokens, scores)
    found = build_experience(rollout, section(advantage=advantage), coefficient=1e-3).advantages
    forced = build_experience(rollout, section(advantage=advantage, whiten_advantages=True), coefficient=1e-3)
    expected = 0.1 if advantage == "rloo" else 1.5  # .1 − 0; (.1 − .025) / .05
    assert found[0].tolist() == pytest.approx([expected] * 3, abs=2e-3)
    assert found[4:].abs().max() < 2e-3
    assert forced.advantages[4:].abs().max() > 2 * found[4:].abs().max()
    assert build_experience(rollout, section(), coefficient=1e-3).advantages.std() == pytest.approx(1.0, abs=0.02)


def test_a_group_with_equal_scores_is_not_told_by_its_noise() -> None:
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(4, 3, seed=0)
    rollout = make_rollout(model, reference, tokens, torch.full((4,), 0.3))
    experience = build_experience(rollout, section(advantage="group", whiten_advantages=False), coefficient=1e-3)
    assert experience.advantages.abs().max() < 1e-2


@pytest.mark.parametrize("advantage", ["gae", "rloo", "group"])
def test_groups_with_equal_scores_are_dropped_as_if_they_had_not_been_sampled(advantage: str) -> None:
    """No group of equal scores has an advantage, the KL penalty's included, and means are over the others' tokens."""
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    scores = torch.arange(32).remainder(4) / 4
    equal = [row for row in range(32) if row // 4 in (0, 3, 6)]
    others = [row for row in range(32) if row not in equal]
    scores[equal[4:]] = 0.3
    scores[equal[:4]] = torch.tensor([(0.2 + 0.2 + 0.2) / 3, 0.2, 0.2, 0.2])  # equal up to rounding
    rollout = make_rollout(model, reference, tokens, scores)
    config = section(advantage=advantage, minibatches=2, whiten_advantages=True)
    dropping = config.model_copy(update={"drop_equal_groups": True})
    experience = build_experience(rollout, dropping, 0.05)
    assert experience.advantages[equal].eq(0).all() and experience.advantages[others].ne(0).all()
    assert build_experience(rollout, config, 0.05).advantages[equal].ne(0).all()
    assert equal_groups_fraction(experience) == len(equal) / 32
    dropped, metrics = update_of(rollout, tokens, dropping)
    others_alone, same = update_of(rows_of(rollout, others), tokens[others], config)
    for name, parameter in dropped.named_parameters():
        torch.testing.assert_close(parameter, others_alone.get_parameter(name), rtol=1e-5, atol=1e-6)
    assert metrics["policy_loss"] == pytest.approx(same["policy_loss"], abs=1e-6)


def test_if_all_groups_are_equal_nothing_is_learnt() -> None:
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    rollout = make_rollout(model, reference, tokens, torch.full((32,), 0.3))
    learnt, metrics = update_of(rollout, tokens, section(drop_equal_groups=True))
    assert torch.equal(learnt.logits, TokenPolicy().logits) and metrics["updates"] == 0
    with pytest.raises(ValueError, match="drop_equal_groups"):
        section(drop_equal_groups=True, group=1)


def one_update(microbatch: int = 10_000, **changes: object) -> tuple[TokenPolicy, dict[str, float], Experience]:
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    config = section(**changes)
    scores = (tokens[:, 0] == 3).float() - tokens[:, 1] / 7
    experience = build_experience(make_rollout(model, reference, tokens, scores), config, 0.05)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = update(experience, policy_for(model, tokens, microbatch), model.trainables(), optimiser, config, seed=7)
    return model, metrics, experience


def test_one_update_against_the_loss_written_out() -> None:
    """One epoch, one minibatch: ρ = 1, so the policy gradient is −mean(Â ∇log π); value and k3 terms beside it."""
    changes = {
        "epochs": 1,
        "entropy_coefficient": 0.01,
        "kl": {"loss": "k3", "loss_coefficient": 0.3},
        "max_grad_norm": 1e9,
    }
    model, metrics, experience = one_update(**changes)
    fresh = TokenPolicy()
    outputs = fresh.outputs(fresh.sample(32, 3, seed=0))
    d = experience.reference_log_probs - outputs.log_probs
    loss = (
        -(experience.advantages * (outputs.log_probs - outputs.log_probs.detach()).exp())
        + 0.5 * 0.5 * (outputs.values - experience.returns) ** 2
        - 0.01 * outputs.entropies
        + 0.3 * (d.exp() - 1 - d)
    ).mean()
    loss.backward()
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter - 0.1 * parameter.grad)
    assert metrics["updates"] == 1
    assert metrics["policy_loss"] == pytest.approx(-experience.advantages.mean().item(), abs=1e-6)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_an_imitation_anchor_adds_its_gradient_before_the_clipping() -> None:
    """∇ = ∇L_PPO + λ ∇CE in one optimiser step, and a coefficient of 0 leaves PPO's bits."""
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens, imitated = model.sample(32, 3, seed=0), model.sample(4, 3, seed=9)
    config = section(epochs=1, max_grad_norm=1e9)
    experience = build_experience(make_rollout(model, reference, tokens, torch.arange(32.0)), config, 0.05)

    def learnt(weight: float | None) -> tuple[TokenPolicy, dict[str, float]]:
        model = TokenPolicy()

        def imitate(number: int) -> torch.Tensor:
            loss = -model.outputs(imitated).log_probs.mean()
            (weight * loss).backward()
            return loss.detach()

        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        anchor = None if weight is None else imitate
        trained = model.trainables()
        return model, update(experience, policy_for(model, tokens), trained, optimiser, config, 7, imitate=anchor)

    plain, without = learnt(None)
    none, _ = learnt(0.0)
    anchored, metrics = learnt(2.0)
    cross_entropy = -TokenPolicy().outputs(imitated).log_probs.mean()
    assert torch.equal(plain.logits, none.logits) and torch.equal(plain.value, none.value)
    assert metrics["imitation_loss"] == pytest.approx(cross_entropy.item())
    assert "imitation_loss" not in without
    fresh = TokenPolicy()
    (-fresh.outputs(imitated).log_probs.mean()).backward()
    torch.testing.assert_close(anchored.logits, plain.logits - 0.1 * 2.0 * fresh.logits.grad)


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_microbatches_change_nothing(advantage: str) -> None:
    whole, metrics, _ = one_update(minibatches=2, advantage=advantage)
    parts, same, _ = one_update(microbatch=3, minibatches=2, advantage=advantage)
    assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert metrics["updates"] == 8
    torch.testing.assert_close(whole.logits, parts.logits, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped() -> None:
    changes = {"epochs": 1, "max_grad_norm": 1e-4}
    model, metrics, _ = one_update(**changes)
    assert metrics["grad_norm/policy"] > 1e-4
    moved = (model.logits - TokenPolicy().logits).norm().item()
    assert moved == pytest.approx(0.1 * 1e-4, rel=1e-2)


def test_target_kl_stops_before_the_step_that_is_too_far() -> None:
    far, metrics, _ = one_update(epochs=50)
    near, stopped, _ = one_update(epochs=50, target_kl=metrics["last_approx_kl"] / 4)
    assert (metrics["stopped"], stopped["stopped"]) == (0.0, 1.0)
    assert 1 <= stopped["updates"] < metrics["updates"] == 50
    start = TokenPolicy().logits
    assert (near.logits - start).norm() < (far.logits - start).norm()


def test_a_diverged_update_is_named_and_changes_nothing() -> None:
    model, reference = TokenPolicy(), TokenPolicy()
    tokens = model.sample(32, 2, seed=0)
    config = section(whiten_advantages=False)
    rollout = make_rollout(model, reference, tokens, torch.full((32,), math.inf))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    experience = build_experience(rollout, config, 0.0)
    with pytest.raises(DivergedError, match="learning_rate"):
        update(experience, policy_for(model, tokens), model.trainables(), optimiser, config, seed=0)
    torch.testing.assert_close(model.logits, TokenPolicy().logits)


def test_two_shares_make_the_update_of_one() -> None:
    """Two processes, here threads that meet at a barrier for each sum: both end where one process ends."""
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    config = section(epochs=2, minibatches=2)
    whole = make_rollout(model, reference, tokens, (tokens[:, 0] == 3).float())
    single, metrics = update_of(whole, tokens, config)
    shares = [[row for row in range(32) if row // 4 % 3 == 0], [row for row in range(32) if row // 4 % 3]]  # uneven
    barrier, said = threading.Barrier(2), [torch.empty(0), torch.empty(0)]

    def reduce_of(part: int) -> Reduce:
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            said[part] = tensor.clone()
            barrier.wait()
            total = said[0] + said[1]
            barrier.wait()
            return total

        return reduce

    def share(part: int) -> tuple[TokenPolicy, dict[str, float]]:
        return update_of(rows_of(whole, shares[part]), tokens[shares[part]], config, reduce_of(part))

    with ThreadPoolExecutor(2) as threads:
        for learnt, same in threads.map(share, range(2)):
            torch.testing.assert_close(learnt.logits, single.logits, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(learnt.value, single.value, rtol=1e-5, atol=1e-6)
            assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def rows_of(rollout: Rollout, rows: list[int]) -> Rollout:
    return Rollout(
        rollout.mask[rows],
        tuple(rollout.contexts[row] for row in rows),
        tuple(rollout.chains[row] for row in rows),
        rollout.scores[rows],
        rollout.log_probs[rows],
        rollout.values[rows],
        rollout.reference_log_probs[rows],
    )


def update_of(
    rollout: Rollout, tokens: torch.Tensor, config: PpoOptions, reduce: Reduce = alone
) -> tuple[TokenPolicy, dict[str, float]]:
    model = TokenPolicy()
    experience = build_experience(rollout, config, 0.05, reduce)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    metrics = update(experience, policy_for(model, tokens), model.trainables(), optimiser, config, 7, reduce)
    return model, metrics | describe(experience, reduce)
