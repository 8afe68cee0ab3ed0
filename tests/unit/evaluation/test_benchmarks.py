"""What the benchmarks conclude from outcomes, without playing any."""

from __future__ import annotations

import argparse
import sqlite3
from pathlib import Path

import pytest
from made_up_evaluation import ATTEMPTS, RATES, chain, described, made_up, tasks

from benchmarks.ceilings import checks, next_attempt
from benchmarks.learning import Claim, judge, markdown, pooled, share
from retro.artifacts import write_json
from retro.config import RunConfig
from retro.evaluation.results import Comparison, Draws, Results, summarise
from retro.evaluation.statistics import outcome

DRAWS = Draws(bootstrap=200, permutations=2_000)


def one_seed(seed: int, count: int = 60) -> Results:
    outcomes = {arm: {seed: {t.id: outcome(chain(arm, t, seed), ATTEMPTS) for t in tasks(count)}} for arm in RATES}
    return summarise(described(RATES), outcomes, tasks(count), ATTEMPTS, DRAWS)


def test_seeds_are_pooled_in_the_tables_order_and_judged() -> None:
    results = {seed: one_seed(seed) for seed in (1, 2, 3)}
    outcomes = pooled(results)
    assert list(outcomes) == list(RATES)
    assert sorted(outcomes["sft"]) == [1, 2, 3]
    summary = summarise(described(RATES), outcomes, tasks(60), ATTEMPTS, DRAWS)
    verdicts = {verdict["claim"].split(":")[0]: verdict for verdict in judge(outcomes, summary, DRAWS)}
    assert verdicts["reflexion against retry-sampled"]["holds"]
    assert verdicts["ppo-env against shuffled"]["seeds_agreeing"] == 3
    assert len(verdicts["ppo-env against shuffled"]["method"]["by_seed"]) == 3
    headroom = next(v for claim, v in verdicts.items() if claim.startswith("headroom"))
    assert 0.5 <= headroom["closed"] <= 1.0 and headroom["holds"]


def test_a_missing_arm_is_no_success() -> None:
    results = one_seed(1)
    outcomes = {name: by_seed for name, by_seed in pooled({1: results}).items() if name != "shuffled"}
    verdicts = judge(outcomes, results, DRAWS)
    assert any(v.get("why") == "an arm is missing" and not v["holds"] for v in verdicts)


@pytest.mark.parametrize(
    ("claim", "difference", "p_value", "low", "holds"),
    [
        (Claim("a", "b", p_below=0.001), 0.1, 0.0005, 0.05, True),
        (Claim("a", "b", p_below=0.001), -0.1, 0.0005, -0.2, False),
        (Claim("a", "b", p_below=0.001), 0.1, 0.002, 0.01, False),
        (Claim("a", "b", low_at_least=-0.01), 0.02, 0.5, -0.009, True),
        (Claim("a", "b", low_at_least=-0.01), 0.02, 0.5, -0.011, False),
        (Claim("a", "b", difference_at_least=0.0), 0.0, 1.0, -0.05, True),
        (Claim("a", "b", difference_at_least=0.0), -0.001, 1.0, -0.05, False),
    ],
)
def test_claims(claim: Claim, difference: float, p_value: float, low: float, holds: bool) -> None:
    comparison = Comparison(
        a="a",
        b="b",
        trial=3,
        difference=difference,
        ci95=(low, 0.3),
        p_value=p_value,
        test="sign-flip",
        tasks=10,
        seeds=5,
        seeds_agreeing=5,
    )
    assert claim.holds(comparison) is holds


def test_the_table_is_markdown() -> None:
    results = one_seed(1)
    outcomes = pooled({1: results})
    measured = {"value": 0.7, "ci95": [0.65, 0.75]}
    reward = {1: {"accuracy": measured, "pairs": 1200, "auc": {"value": None, "ci95": None}}}
    text = markdown(results, judge(outcomes, results, DRAWS), reward, argparse.Namespace(offset=60_000))
    assert "| ppo-env-bon8 |" in text and "0.700 (0.650 to 0.750) | 1200 | undefined" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 and all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_shared_stages_are_copied_once_and_whole(tmp_path: Path) -> None:
    source, target = (RunConfig(name=name, runs=str(tmp_path)) for name in ("env", "rm"))
    for stage in ("collect", "sft", "reward"):
        write_json(source.run_dir / stage / "stage.json", {"status": "complete", "stage": stage})
    with sqlite3.connect(source.run_dir / "buffer.sqlite") as database:
        database.execute("create table t (x)")
        database.execute("insert into t values (1)")
    database.close()
    share(source, target)
    (target.run_dir / "sft" / "kept").touch()
    share(source, target)
    assert (target.run_dir / "sft" / "kept").exists()
    write_json(source.run_dir / "sft" / "stage.json", {"status": "complete", "stage": "sft", "seed": 1})
    share(source, target)
    assert not (target.run_dir / "sft" / "kept").exists()
    copied = sqlite3.connect(target.run_dir / "buffer.sqlite")
    assert copied.execute("select x from t").fetchall() == [(1,)]
    copied.close()
    assert not list(target.run_dir.glob("*.part"))


def test_the_checks_of_the_ceilings() -> None:
    results, _ = made_up(["retry", "retry-sampled", "reflexion", "oracle"], 200)
    results["arms"]["vague"] = {**results["arms"]["retry"], **described(["vague"])["vague"]}  # type: ignore[typeddict-item]
    results["outcomes"]["vague"] = results["outcomes"]["retry"]
    found = {check["check"]: check for check in checks(results)}
    assert len(found) == 5
    assert found["a vague reflection is within 5 points of retry"]["figure"] == 0.0
    assert found["reflexion is ≥ 10 points above retry-sampled"]["holds"]


def test_the_next_attempt_counts_failures_alone() -> None:
    outcomes = {"a": {"solved_at": 0}, "b": {"solved_at": 1}, "c": {"solved_at": None}, "d": {"solved_at": 2}}
    repaired = next_attempt(outcomes)
    assert (repaired["failed"], repaired["solved"], repaired["share"]) == (3, 1, pytest.approx(1 / 3))
