"""Which arms are compared, by what they are and never by what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from made_up_evaluation import described

from retro.evaluation.roles import Description, Role, base_of, one_of, planned_pairs


def renamed(arms: dict[str, Description]) -> tuple[dict[str, Description], dict[str, str]]:
    """The same arms under names that say nothing, and what each is now called."""
    names = {name: f"arm {index}" for index, name in enumerate(arms)}
    return {names[name]: arm for name, arm in arms.items()}, names


def changed(arm: Description, **parts: Any) -> Description:
    copy: Description = json.loads(json.dumps(arm))
    copy["parts"] |= parts  # type: ignore[typeddict-item]
    return copy


def of_path(arm: Description, name: str) -> Description:
    return changed(arm, policy=arm["parts"]["policy"] | {"stage": None, "name": name, "path": f"runs/{name}"})


def test_planned_pairs_follow_the_method() -> None:
    arms = described(["retry-sampled", "shuffled", "reflexion", "sft", "ppo-env", "ppo-env-bon8"])
    arms["mine"] = of_path(arms["ppo-env"], "mine")
    assert planned_pairs(arms) == [
        ("shuffled", "retry-sampled"),
        ("reflexion", "retry-sampled"),
        ("sft", "reflexion"),
        *(("ppo-env", below) for below in ("sft", "reflexion", "shuffled", "retry-sampled")),
        ("ppo-env-bon8", "ppo-env"),
        ("ppo-env-bon8", "shuffled"),
        *(("mine", below) for below in ("sft", "reflexion", "shuffled", "retry-sampled")),
        ("ppo-env", "mine"),  # trained ones, each two once
    ]


def test_names_decide_nothing() -> None:
    arms = described(["one-shot", "retry", "retry-sampled", "reflexion", "reflexion-bon4", "sft", "ppo-env", "oracle"])
    others, names = renamed(arms)
    assert planned_pairs(others) == [(names[a], names[b]) for a, b in planned_pairs(arms)]
    assert base_of(names["reflexion-bon4"], others) == names["reflexion"]
    assert one_of(others, Role.CEILING) == names["oracle"]


def pairs_of(name: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [b for a, b in pairs if a == name]


def test_another_sampler_or_advice_is_compared_with_the_arm_that_differs_in_nothing_else() -> None:
    arms = described(["shuffled", "ppo-env", "ppo-env-bon4"])
    arms["less memory"] = changed(arms["ppo-env-bon4"], memory={"kind": "window", "size": 1})
    arms["own sampler"] = changed(arms["ppo-env"], sampler={"kind": "mine:Sampler"})
    arms["advised"] = changed(arms["ppo-env"], advice=2)
    pairs = planned_pairs(arms)
    for name in ("ppo-env-bon4", "own sampler", "advised"):
        assert pairs_of(name, pairs) == ["ppo-env", "shuffled"]
    assert pairs_of("less memory", pairs) == ["shuffled"] and base_of("less memory", arms) is None
