"""PPO's learning curve on the smallest world, as it was recorded: a refactoring that changes the maths is seen here.

To record it anew, after a change that is meant: ``python -m tests.invariants.test_ppo_curve`` and say why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.token_world import section, train

RECORDED = Path(__file__).with_name("ppo_curve.json")
TOKENS = 128
"""Of a step, over which fractions are taken."""
CASES = {
    "gae": {"advantage": "gae", "minibatches": 2, "entropy_coefficient": 0.01},
    "rloo": {
        "advantage": "rloo",
        "whiten_advantages": True,
        "kl": {"coefficient": 0.1, "loss": "k3", "loss_coefficient": 0.05},
    },
    "group": {"advantage": "group", "whiten_advantages": False, "target_kl": 0.02},
}


def curves() -> dict[str, list[dict[str, float]]]:
    return {name: train(section(**changes), steps=6)[1] for name, changes in CASES.items()}


def test_the_curve_is_the_recorded_one() -> None:
    recorded = json.loads(RECORDED.read_text())
    for name, curve in curves().items():
        for now, then in zip(curve, recorded[name], strict=True):
            counted = {key for key in then if key.endswith("_fraction")}
            smooth = {key: value for key, value in now.items() if key not in counted}
            assert smooth == pytest.approx({key: then[key] for key in smooth}, rel=2e-3, abs=2e-4), name
            for key in counted:  # a token beside the threshold may fall on its other side by rounding
                assert now[key] == pytest.approx(then[key], abs=2 / TOKENS), (name, key)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(curves(), indent=1) + "\n")
