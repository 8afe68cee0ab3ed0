"""PPO's experience of chains of responses."""

from __future__ import annotations

import pytest
import torch

from retro.rl.experience import Rollout
from retro.rl.ppo import build_experience
from tests.token_world import TokenPolicy, make_rollout, section


def test_chains_of_one_turn_have_the_experience_of_groups() -> None:
    model, reference = TokenPolicy(), TokenPolicy(seed=1)
    tokens = model.sample(32, 3, seed=0)
    rollout = make_rollout(model, reference, tokens, (tokens[:, 0] == 3).float())
    chain, group = (build_experience(rollout, section(advantage=name), 0.05) for name in ("chain", "group"))
    torch.testing.assert_close(chain.advantages, group.advantages)
    assert torch.equal(chain.returns, group.returns)


def test_every_token_of_a_chain_has_its_advantage_and_chains_with_equal_sums_are_dropped() -> None:
    """Two groups of two chains; the KL penalty counts per chain, too."""
    zeros, chains = torch.zeros(6, 2), (0, 1, 1, 0, 1, 1)
    scores = torch.tensor([0.6, 0.1, 0.1, 0.3, 0.1, 0.2])  # sums .6, .2 and .3, .3
    rollout = Rollout(
        mask=torch.tensor([[True, True], [True, False]] * 3),
        contexts=(0, 0, 0, 1, 1, 1),
        chains=chains,
        scores=scores,
        log_probs=zeros,
        values=zeros,
        reference_log_probs=zeros - torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])[:, None],
    )
    experience = build_experience(rollout, section(advantage="chain", drop_equal_groups=True), 0.1)
    high = 0.5**0.5 + 0.2  # and the penalty of the other chain: .1 × 1 nat on each of two tokens
    expected = torch.tensor([[high, high], [-high, 0.0], [-high, -high], *[[0.0, 0.0]] * 3])
    torch.testing.assert_close(experience.advantages, expected, atol=1e-4, rtol=0)
    assert experience.kept.tolist() == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="use chain or gae"):
        section(turns=2, advantage="group")
    with pytest.raises(ValueError, match="need retries"):
        section(turns=2, advantage="chain", reward="length")
