"""The smallest language model there is, and PPO on it: what the tests of the algorithm train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from retro.rl.experience import Outputs, Rollout
from retro.rl.options import PpoOptions
from retro.rl.ppo import Trainable, build_experience, describe, update

VOCABULARY = 6


class TokenPolicy(nn.Module):
    """A table of logits for each pair (previous token, next token)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(0.1 * torch.randn(VOCABULARY + 1, VOCABULARY, generator=generator))
        self.value = nn.Parameter(torch.zeros(VOCABULARY + 1))

    def sample(self, count: int, length: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        previous = torch.full((count,), VOCABULARY)
        tokens = []
        for _ in range(length):
            previous = torch.multinomial(self.logits.detach()[previous].softmax(-1), 1, generator=generator)[:, 0]
            tokens.append(previous)
        return torch.stack(tokens, dim=1)  # (B, L)

    def outputs(self, tokens: torch.Tensor) -> Outputs:
        previous = torch.cat([torch.full((len(tokens), 1), VOCABULARY), tokens[:, :-1]], dim=1)
        log_probs = self.logits[previous].log_softmax(-1)  # (B, L, V)
        chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
        return Outputs(chosen, self.value[previous], -(log_probs.exp() * log_probs).sum(-1))

    def trainables(self) -> list[Trainable]:
        return [Trainable("policy", [self.logits]), Trainable("value", [self.value])]


def policy_for(model: TokenPolicy, tokens: torch.Tensor, microbatch: int = 10_000):  # type: ignore[no-untyped-def]
    def run(rows: Sequence[int]) -> Iterator[tuple[list[int], Outputs]]:
        for start in range(0, len(rows), microbatch):
            chosen = list(rows[start : start + microbatch])
            yield chosen, model.outputs(tokens[chosen])

    return run


def make_rollout(model: TokenPolicy, reference: TokenPolicy, tokens: torch.Tensor, scores: torch.Tensor) -> Rollout:
    with torch.no_grad():
        outputs, behind = model.outputs(tokens), reference.outputs(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    group = 4
    contexts = tuple(row // group for row in range(len(tokens)))
    chains = tuple(row % group for row in range(len(tokens)))
    return Rollout(mask, contexts, chains, scores, outputs.log_probs, outputs.values, behind.log_probs)


def section(**changes: object) -> PpoOptions:
    return PpoOptions.model_validate({"contexts": 8, "group": 4, "epochs": 4, **changes})


def train(
    config: PpoOptions, steps: int, length: int = 2, wanted: int = 3
) -> tuple[TokenPolicy, list[dict[str, float]]]:
    """Reward 1 if the first token is ``wanted``; everything else is the same algorithm as the stage's."""
    curve = []
    model, reference = TokenPolicy(), TokenPolicy()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    for step in range(steps):
        tokens = model.sample(config.contexts * config.group, length, seed=step)
        scores = (tokens[:, 0] == wanted).float()
        experience = build_experience(make_rollout(model, reference, tokens, scores), config, config.kl.coefficient)
        learnt = update(experience, policy_for(model, tokens), model.trainables(), optimiser, config, seed=step)
        curve.append({"score": float(scores.mean())} | describe(experience) | learnt)
    return model, curve


def first_token(model: TokenPolicy) -> torch.Tensor:
    return model.logits.detach()[VOCABULARY].softmax(-1)
