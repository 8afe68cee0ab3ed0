"""Procedures: what is extracted, their posteriors, their choice, their refinement, their bounds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from retro.memory.procedures import (
    Procedure,
    ProcedureBank,
    ProceduresOptions,
    expected_utility,
    generalised,
    segmented,
)
from retro.types import Episode, RecalledEntries, Step, Trajectory
from tests.unit.memory.plays import ask, folded, memory_section, play, task

OPTIONS = ProceduresOptions()
SUBGOALS = (("go to desk 1", 0.0), ("take mug 1 from desk 1", 0.3), ("heat mug 1", 0.3), ("put mug 1 in shelf 2", 0.4))


def bank(*episodes: Episode, **options: object) -> ProcedureBank:
    memory = folded(memory_section("procedures", **options), *episodes)
    assert isinstance(memory, ProcedureBank)
    return memory


def solved(name: str, subgoals: tuple[tuple[str, float], ...] = SUBGOALS, success: bool = True) -> Episode:
    steps = tuple(Step(action, f"{action}: done", reward) for action, reward in subgoals)
    episode = play(task(name), success=success)
    return replace(episode, trajectory=Trajectory(episode.trajectory.opening, steps))


def arm(successes: int = 0, failures: int = 0) -> Procedure:
    fields = {"id": "x", "environment": "e", "task": "", "kind": "", "opening": "", "latest": 0}
    return Procedure(**fields, steps=("look",), successes=successes, failures=failures)  # type: ignore[arg-type]


def test_a_part_ends_at_a_reward_and_names_no_numbers() -> None:
    actions = ("look", "open box 1", "open box 2", "  take   mug 1 from box 2", "", "look", "look")
    steps = tuple(Step(action, f"saw {n}", 0.5 * (n == 3)) for n, action in enumerate(actions))
    first, rest = segmented(Trajectory("A room.", steps))
    assert first == (("look", "open <box>", "take <mug> from <box>"), "saw 3", True)
    assert rest == (("look",), "saw 6", False)
    assert segmented(Trajectory("A room.")) == []


def test_an_argument_in_brackets_is_generalised() -> None:
    found = {
        generalised(f"{name}[{argument}]") for name in ("Search", "Finish") for argument in ("Paris", "[a] [b", "")
    }
    assert found == {"Search[…]", "Finish[…]"}
    assert generalised("[" * 100_000) == "[" * 100_000
    assert generalised("look [at desk 1") == "look [at <desk>"


def test_the_count_is_that_of_the_episodes() -> None:
    failed = solved("c", (("go to desk 3", 0.0), ("take mug 2 from desk 3", 0.3), ("heat mug 2", 0.0)), success=False)
    memory = bank(solved("a"), solved("b"), failed)
    counts = {entry.steps: (entry.successes, entry.failures) for entry in memory.entries.values() if not entry.parts}
    assert counts == {
        ("go to <desk>", "take <mug> from <desk>"): (3, 0),
        ("heat <mug>",): (2, 1),
        ("put <mug> in <shelf>",): (2, 0),
    }
    assert {entry.rate for entry in memory.entries.values() if entry.successes == 3} == {4 / 5}


def test_a_success_of_three_procedures_is_a_routine() -> None:
    memory = bank(solved("a"), solved("b"))
    (routine,) = [entry for entry in memory.entries.values() if entry.parts]
    assert [memory.entries[id].steps[-1] for id in routine.parts] == [
        "take <mug> from <desk>",
        "heat <mug>",
        "put <mug> in <shelf>",
    ]
    assert (routine.successes, routine.failures, len(routine.steps)) == (2, 0, 4)
    again = memory.fold(solved("c", success=False))
    assert (again.entries[routine.id].successes, again.entries[routine.id].failures) == (2, 1)
    assert not [entry for entry in bank(solved("a", success=False)).entries.values() if entry.parts]


def test_the_means_are_close_to_the_true_rates_after_200_draws() -> None:
    rates, errors = {"rarely": 0.2, "half": 0.5, "mostly": 0.8}, []
    for seed in range(5):
        rng, memory = random.Random(seed), bank()
        for name in [*rates] * 200:
            memory = memory.fold(play(task("a"), success=rng.random() < rates[name], actions=(name,)))
        errors += [abs(entry.rate - rates[entry.steps[0]]) for entry in memory.entries.values()]
    assert len(errors) == 15
    assert sum(errors) / len(errors) < 0.05
    assert max(errors) < 0.1


def test_its_regret_is_lower_than_that_of_epsilon_greedy() -> None:
    rates = (0.2, 0.5, 0.8)

    def regret(seed: int, epsilon: float | None) -> float:
        rng, arms, lost = random.Random(seed), [arm() for _ in rates], 0.0
        for _ in range(200):
            if epsilon is None:
                scores = [expected_utility(1, entry.failures > 0, entry, OPTIONS) for entry in arms]
            else:
                explores = rng.random() < epsilon
                scores = [rng.random() if explores else entry.rate for entry in arms]
            index = max(range(3), key=lambda i: (scores[i], rng.random()))
            good = rng.random() < rates[index]
            arms[index] = arm(arms[index].successes + good, arms[index].failures + (not good))
            lost += max(rates) - rates[index]
        return lost

    ours, theirs = (sum(regret(seed, epsilon) for seed in range(60)) / 60 for epsilon in (None, 0.1))
    assert ours < theirs


def test_the_expected_utility_is_the_formula() -> None:
    entry = arm(2, 1)  # Beta(3, 2): mean 0.6, variance 6 / (25 · 6)
    expected = 0.9 * 0.6 - 0.5 * 0.4 * 0.5 + 0.1 * 12 * 0.04
    assert expected_utility(0.9, 0.5, entry, OPTIONS) == pytest.approx(expected)
    assert expected_utility(0, 0, arm(), OPTIONS) == pytest.approx(0.1)  # untried: the largest gain of information


def test_with_equal_means_the_one_that_was_tried_less_is_preferred() -> None:
    scores = [expected_utility(0.9, 0, arm(count, count), OPTIONS) for count in (0, 1, 5, 50)]
    assert scores == sorted(scores, reverse=True)
    often = [play(task("a"), success=n % 2 > 0, actions=("often",)) for n in range(20)]
    rarely = [play(task("a"), success=n % 2 > 0, actions=("rarely",)) for n in range(2)]
    recalled = bank(*often, *rarely).recall(ask("heat")).entries
    assert recalled == ("heat: rarely (worked 1 of 2 times)",)


def test_what_has_little_to_gain_is_not_shown() -> None:
    failures = [play(task("a"), success=False, actions=("wait",)) for _ in range(6)]
    assert bank(*failures).recall(ask("heat")).entries == ()
    assert bank(*failures, min_utility=-1).recall(ask("heat")).entries
    assert bank(play(task("a"), actions=("wait",))).recall(ask("heat")).entries


def test_several_are_shown_the_best_last() -> None:
    goals = (("take mug 1", 0.5), ("heat mug 1", 0.3), ("put mug 1", 0.2))
    episodes = [solved(f"task-{n}", goals) for n in range(4)] + [solved("task-9", (("look", 0.0), ("put mug 1", 1.0)))]
    recalled = bank(*episodes, procedures=3, exploration=0.0).recall(ask("new"))
    assert isinstance(recalled, RecalledEntries)
    steps = [fact["steps"] for fact in recalled.facts if fact]
    assert len(steps) == 3
    assert bank(*episodes, exploration=0.0).recall(ask("new")).ids == recalled.ids[-1:]


def test_after_three_successes_and_three_failures_conditions_are_learnt() -> None:
    worked = [play(task(f"w{n}"), actions=("use stove",), thing="pan") for n in range(3)]
    failed = [play(task(f"f{n}"), actions=("use stove",), thing="cup", success=False) for n in range(3)]
    (early,) = bank(*worked, *failed[:2]).entries.values()
    assert early.preconditions == frozenset()
    memory = bank(*worked, *failed)
    (entry,) = memory.entries.values()
    assert entry.preconditions == {"pan"}
    assert memory.recall(ask("heat", "pan")).entries == ("heat: use stove (worked 3 of 6 times; needs: pan)",)
    assert memory.recall(ask("heat", "cup")).entries == ()  # its preconditions are not met, and all failures began so
    endings = replace(worked[0], trajectory=Trajectory("It is cold.", (Step("use stove", "It burns."),)))
    colder = replace(failed[0], trajectory=Trajectory("It is cold.", (Step("use stove", "It clicks."),)))
    (entry,) = bank(*[endings] * 3, *[colder] * 3).entries.values()
    assert (entry.preconditions, entry.postconditions) == (frozenset(), {"burns"})


def test_both_capacities_are_exact_and_the_least_valuable_goes() -> None:
    good = [solved("a", tuple((f"{name}{n}", 0.3) for name in "xyz")) for n in "bcdefgh" for _ in range(10)]
    memory = bank(*good, capacity=10, routines=4)
    assert sum(not entry.parts for entry in memory.entries.values()) == 10
    assert sum(bool(entry.parts) for entry in memory.entries.values()) == 4
    proven = [play(task("a"), actions=("proven",)) for _ in range(10)]
    poor = [play(task("a"), actions=(f"poor {letter}",), success=False) for letter in "abcdefgh"]
    left = {entry.steps[0] for entry in bank(*proven, *poor, capacity=3).entries.values()}
    assert "proven" in left


def test_only_the_latest_contexts_are_kept_and_long_procedures_are_not() -> None:
    (entry,) = bank(*(play(task(f"t{n}"), actions=("look",), thing=f"cup{n}") for n in range(30))).entries.values()
    assert (entry.successes, len(entry.worked), entry.task) == (30, 3, "")
    assert "cup29" in entry.worked[-1].opening
    assert not bank(play(task("a"), actions=("look " * 900,))).entries
