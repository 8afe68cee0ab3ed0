"""What the benchmarks conclude from outcomes, without playing any."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_evaluation import ATTEMPTS, RATES, chain, described, made_up, tasks

from benchmarks import learning, methods
from benchmarks.ceilings import checks, next_attempt
from benchmarks.training_report import BEST_ARM, Claim, judge, markdown, merged, pooled
from benchmarks.training_runs import FACTORS, RIVALS, Benchmark, share, tried
from retro.artifacts import write_json
from retro.config import RunConfig
from retro.evaluation.presets import planned_arms
from retro.evaluation.results import Draws, Results, summarise
from retro.evaluation.statistics import outcome

EXTRAS = {"alfworld", "fast_downward", "textworld", "py4j", "scienceworld", "textworld_express"}
ROOT = Path(__file__).parents[3]
DRAWS = Draws(bootstrap=200, permutations=2_000)


def one_seed(seed: int, count: int = 60) -> Results:
    outcomes = {arm: {seed: {t.id: outcome(chain(arm, t, seed), ATTEMPTS) for t in tasks(count)}} for arm in RATES}
    return summarise(described(RATES), outcomes, tasks(count), ATTEMPTS, DRAWS)


CLAIMS = (
    Claim("reflexion", "retry-sampled"),
    Claim("ppo-env", "shuffled"),
    Claim(BEST_ARM, "retry-sampled", difference_at_least=0.2),
    Claim("reflexion", "ppo-env"),
)


def test_seeds_are_pooled_in_the_tables_order_and_judged() -> None:
    results = {seed: one_seed(seed) for seed in (1, 2, 3)}
    outcomes = pooled(results)
    assert list(outcomes) == list(RATES)
    assert sorted(outcomes["sft"]) == [1, 2, 3]
    summary = summarise(described(RATES), outcomes, tasks(60), ATTEMPTS, DRAWS)
    above, ppo, best, below, headroom = judge(CLAIMS, outcomes, summary, DRAWS)
    assert above["holds"] and above["method"]["ci95"][0] > 0
    assert ppo["seeds_agreeing"] == 3 and len(ppo["method"]["by_seed"]) == 3
    assert best["holds"] and best["a"].startswith("ppo-env")
    assert not below["holds"]
    assert 0.5 <= headroom["closed"] <= 1.0 and headroom["holds"]


def test_one_seed_proves_no_claim_about_a_method() -> None:
    results = one_seed(1)
    verdicts = judge(CLAIMS[:1], pooled({1: results}), results, DRAWS)
    assert verdicts[0]["difference"] > 0 and verdicts[0]["method"] is None and not verdicts[0]["holds"]


def test_a_missing_arm_is_no_success() -> None:
    results = one_seed(1)
    outcomes = {name: by_seed for name, by_seed in pooled({1: results}).items() if name != "shuffled"}
    verdicts = judge(CLAIMS, outcomes, results, DRAWS)
    assert any(v.get("why") == "an arm is missing" and not v["holds"] for v in verdicts)


@pytest.mark.parametrize(
    ("claim", "difference", "low", "holds"),
    [
        (Claim("a", "b"), 0.1, 0.05, True),
        (Claim("a", "b"), 0.1, 0.0, False),
        (Claim("a", "b", difference_at_least=0.25), 0.24, 0.1, False),
        (Claim("a", "b", difference_at_least=0.25), 0.25, 0.1, True),
        (Claim("a", "b", above=-0.01), 0.0, -0.009, True),
        (Claim("a", "b", above=-0.01), 0.02, -0.011, False),
    ],
)
def test_claims(claim: Claim, difference: float, low: float, holds: bool) -> None:
    assert claim.holds(difference, low) is holds


def benchmark(runs: Path) -> Benchmark:
    return Benchmark(learning.WORLD, learning.WORLD.config, runs, (1, 2), 30, 1, ("ppo.steps=10",), tuple(RIVALS))


def test_every_method_of_a_seed_is_an_arm_of_its_evaluation(tmp_path: Path) -> None:
    config = benchmark(tmp_path).evaluation(1)
    arms = {arm.name: arm for arm in config.evaluate.arms if not isinstance(arm, str)}
    assert {"sft-matched", "ppo-rm", "ppo-rm-bon8", "ppo-env", "ppo-env-bon4", *RIVALS} == arms.keys() - {
        "ppo-rm-bon4",
        "ppo-env-bon8",
    }
    for arm in arms.values():
        Path(arm.policy).mkdir(parents=True, exist_ok=True)
    assert [arm.name for arm in planned_arms(config)][:6] == list(
        ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft")
    )
    assert config.environment.tasks.test == 30 and config.ppo.steps == 10


def test_the_matched_run_plays_as_many_episodes_as_ppo(tmp_path: Path) -> None:
    matched = benchmark(tmp_path).matched(1)
    assert matched.collect.episodes == 10 * 24 * 8 + 3 * 100
    assert matched.environment.tasks.offset == 60_500 and matched.environment.tasks.train == 4000
    assert matched.collect.splits == ["train"] and matched.collect.source == str(tmp_path / "seed-1-env" / "sft")


def test_a_rival_learns_at_the_rate_that_validation_tasks_chose(tmp_path: Path) -> None:
    world = benchmark(tmp_path)
    returns = {factor: 0.4 + 0.1 * (factor == 3.0) for factor in FACTORS}
    for name in RIVALS:
        for factor in FACTORS:
            best = world.rival(world.world.tuning_seed, name, factor).run_dir / "ppo" / "best"
            write_json(best / "state.json", {"best_return": returns[factor]})
    write_json(world.rates_file, {name: tried(world, name) for name in RIVALS})
    assert world.best_factors() == dict.fromkeys(RIVALS, 3.0)
    chosen = world.rival(1, "dpo", 3.0)
    assert chosen.ppo.algorithm == "dpo" and chosen.ppo.learning_rate == pytest.approx(3e-3)
    assert chosen.run_dir.name == "seed-1-dpo"
    assert json.loads(world.rates_file.read_text())["grpo"][0]["learning_rate"] == pytest.approx(1e-3 / 3)


def test_the_table_is_markdown() -> None:
    results = one_seed(1)
    outcomes = pooled({1: results})
    measured = {"value": 0.7, "ci95": [0.65, 0.75]}
    reward = {1: {"accuracy": measured, "pairs": 1200, "auc": {"value": None, "ci95": None}}}
    text = markdown(results, judge(CLAIMS, outcomes, results, DRAWS), reward, 60_000)
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


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_finds_what_it_imports(file: Path) -> None:
    try:
        importlib.import_module(f"benchmarks.{file.stem}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_a_benchmark_of_the_name_of_a_package_does_not_hide_it() -> None:
    if importlib.util.find_spec("alfworld") is None:
        pytest.skip("pip install 'retro[alfworld]'")
    script = ROOT / "benchmarks" / "alfworld_engine.py"
    asked = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr


def test_every_memory_meets_every_policy_and_sampler_once(tmp_path: Path) -> None:
    world = methods.WORLDS["household"]
    compared = Benchmark(world, world.config, tmp_path, (1,), 30, 1, (), ())
    ppo = compared.main_run(1).run_dir / "ppo"
    ppo.mkdir(parents=True)
    names: list[str] = []
    for memory in methods.MEMORIES:
        config = methods.evaluation(compared, list(methods.SAMPLERS), 1, memory)
        assert config.run_dir.name == f"seed-1-{memory}" and config.memory.kind == memory
        names += [arm.name for arm in planned_arms(config)]
    assert len(names) == len(set(names))
    plain = 1 + 3 * len(methods.SAMPLERS)
    assert len(names) == len(methods.MEMORIES) * plain + 2 + 2 * (len(methods.MEMORIES) - 1)
    assert {"retry", "retry-sampled", "oracle", "ppo-env+refine", "playbook", "retrieval+ppo-env+shuffled"} <= {*names}


def with_success(rates: dict[str, tuple[float, float, int]]) -> Results:
    """Results of which only success at the first and the last attempt and the tokens matter."""
    results, _ = made_up(["retry"], 10)
    arm = results["arms"]["retry"]
    results["arms"] = {
        name: {**arm, "success_by_trial": [first, last], "tokens_per_task": tokens}
        for name, (first, last, tokens) in rates.items()
    }
    return results


def test_the_front_is_of_arms_that_no_cheaper_one_reaches() -> None:
    results = with_success(
        {
            "ppo-env": (0.3, 0.8, 900),
            "retry": (0.3, 0.4, 500),
            "procedures": (0.5, 0.6, 450),
            "playbook": (0.4, 0.8, 950),
            "oracle": (0.3, 1.0, 400),
            "procedures+ppo-env+shuffled": (0.3, 0.9, 880),
        }
    )
    assert methods.pareto(results) == ["procedures", "ppo-env"]
    assert methods.best_bank(results) == "procedures"
    first, shuffled, above = methods.claims(results)[2:]
    assert (first.a, first.b, first.attempt, first.difference_at_least) == ("procedures", "retry", 1, 0.15)
    assert (shuffled.a, shuffled.b, shuffled.above) == ("retry", "procedures+shuffled", -0.03)
    assert (above.a, above.b, above.attempt) == ("procedures+ppo-env", "ppo-env", 2)


def test_evaluations_of_one_seed_are_one_table() -> None:
    left, right = with_success({"retry": (0.1, 0.2, 1)}), with_success({"procedures": (0.3, 0.4, 2)})
    left["seconds"], right["seconds"] = {"ppo": 3.0}, {"memory": 1.0}
    right["outcomes"] = {"procedures": left["outcomes"]["retry"]}
    both = merged([left, right])
    assert list(both["arms"]) == list(both["outcomes"]) == ["retry", "procedures"]
    assert both["seconds"] == {"ppo": 3.0, "memory": 1.0}


def test_a_claim_may_be_about_the_first_attempt() -> None:
    results = {seed: one_seed(seed) for seed in (1, 2)}
    outcomes = pooled(results)
    summary = summarise(described(RATES), outcomes, tasks(60), ATTEMPTS, DRAWS)
    first, last = judge([Claim("ppo-env", "retry", attempt=1), Claim("ppo-env", "retry")], outcomes, summary, DRAWS)[:2]
    assert first["trial"] == 0 and last["trial"] == ATTEMPTS - 1
    assert first["difference"] < last["difference"]
    assert "at attempt 1" in first["claim"]
