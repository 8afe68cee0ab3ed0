"""PPO's learning curve on the smallest world, as it was recorded: a refactoring that changes the maths is seen here.

To record it anew, after a change that is meant: ``python -m tests.invariants.test_ppo_curve`` and say why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.token_world import section, train

RECORDED = Path(__file__).with_name("ppo_curve.json")
CASES = {
    "gae": {"advantage": "gae", "minibatches": 2, "entropy_coefficient": 0.01},
    "rloo": {"advantage": "rloo", "kl": {"coefficient": 0.1, "loss": "k3", "loss_coefficient": 0.05}},
    "group": {"advantage": "group", "whiten_advantages": False, "target_kl": 0.02},
}


def curves() -> dict[str, list[dict[str, float]]]:
    return {name: train(section(**changes), steps=6)[1] for name, changes in CASES.items()}


def test_the_curve_is_the_recorded_one() -> None:
    recorded = json.loads(RECORDED.read_text())
    for name, curve in curves().items():
        for now, then in zip(curve, recorded[name], strict=True):
            assert now == pytest.approx(then, rel=2e-3, abs=2e-4), name


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(curves(), indent=1) + "\n")
