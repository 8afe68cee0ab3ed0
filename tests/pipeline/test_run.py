"""The real commands, end to end, with random models: what is written, what is printed, what is not done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retro.cli.stages import ordered_stages
from retro.config import RunConfig
from tests.pipeline.running import Run, read_metrics, retro

STAGES = [stage.name for stage in ordered_stages() if stage.applies(RunConfig())]


def test_the_run_folder_is_as_promised(whole_run: Run) -> None:
    for path in (
        "config.yaml",
        "buffer.sqlite",
        "sft/adapter/adapter_model.safetensors",
        "reward/adapter/adapter_model.safetensors",
        "ppo/checkpoint-4",
        "ppo/rollouts",
        "export/adapter/adapter_config.json",
        "export/reward/head.safetensors",
        "export/retro.json",
        "evaluation/results.json",
        "evaluation/success_by_trial.png",
        "evaluation/report.html",
        "evaluation/episodes.jsonl",
        "metrics.jsonl",
    ):
        assert (whole_run.folder / path).exists(), path
    for stage in STAGES:
        manifest = whole_run.manifest(stage)
        assert manifest["status"] == "complete"
        assert manifest["seconds"] > 0
    assert {"sft", "reward", "ppo"} <= {line["stage"] for line in read_metrics(whole_run.folder)}


def test_results_are_as_promised(whole_run: Run) -> None:
    results = json.loads((whole_run.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert (results["tasks"], results["attempts"]) == (4, 2)
    assert {"retry-sampled", "reflexion", "sft", "oracle"} <= set(results["arms"])
    for arm in results["arms"].values():
        assert len(arm["success_by_trial"]) == len(arm["return_by_trial"]) == len(arm["ci95"]) == 2
        assert arm["tokens_per_task"] > 0
        assert all(
            0 <= low <= value <= high <= 1
            for value, (low, high) in zip(arm["success_by_trial"], arm["ci95"], strict=True)
        )
    for comparison in results["comparisons"]:
        assert comparison["test"] in ("sign-flip", "mcnemar-exact")
        assert 0 < comparison["p_value"] <= 1
    assert set(results["seconds"]) == set(STAGES)


def test_it_opens_with_a_plan_and_ends_with_a_table_paths_and_ways_on(whole_run: Run) -> None:
    screen = (whole_run.folder.parent / "screen.txt").read_text(encoding="utf-8")
    assert screen.index("plan") < screen.index("not run yet") < screen.index("after collect")
    end = screen[screen.index("tokens/task") :]
    for arm in ("retry-sampled", "reflexion", "sft", "oracle"):
        assert arm in end
    for path in ("export/adapter", "evaluation/success_by_trial.png", "evaluation/report.html"):
        assert str(whole_run.folder / path) in end
    assert end.count("retro run") == 2
    assert "examples/own_environment.py" in end


def test_the_buffer_holds_a_tree_of_household_episodes(whole_run: Run) -> None:
    with whole_run.buffer() as buffer:
        episodes = list(buffer.episodes())
        ids = {episode.id for episode in episodes}
        assert len(ids) == len(episodes)
        assert all(episode.parent in ids for episode in episodes if episode.parent)
        played = [episode for episode in episodes if not episode.id.startswith(("train-5", "validation-5", "test-5"))]
        retries = [episode for episode in played if episode.parent]
        assert len([episode for episode in played if not episode.parent]) == 6 + 3 + 4
        assert {episode.reflection is None for episode in retries} == {True, False}


def test_a_second_run_does_nothing_twice_and_runs_from_the_dumped_config(whole_run: Run) -> None:
    before = {stage: whole_run.manifest(stage) for stage in STAGES}
    done = retro("run", str(whole_run.folder / "config.yaml"))
    assert done.stdout.count("up to date") >= len(STAGES)
    assert "tokens/task" in done.stdout
    assert {stage: whole_run.manifest(stage) for stage in STAGES} == before


def test_a_changed_key_runs_what_reads_it_and_what_is_behind(whole_run: Run) -> None:
    done = retro(*whole_run.command("ppo.kl.coefficient=0.5", "--dry-run"))
    plan = done.stdout[done.stdout.index(" plan") :] if " plan" in done.stdout else done.stdout
    rows = {cells[1].strip(): cells[2:4] for line in plan.splitlines() if len(cells := line.split("│")) == 5}
    assert [rows[stage][0].strip() for stage in STAGES] == ["up to date"] * 3 + ["run"] * 3
    assert "ppo.kl.coefficient" in rows["ppo"][1]
    assert "after ppo" in rows["evaluate"][1]


def test_the_report_is_rebuilt_from_what_was_measured(whole_run: Run) -> None:
    page = whole_run.folder / "evaluation" / "report.html"
    plot = whole_run.folder / "evaluation" / "success_by_trial.png"
    before = page.read_text(encoding="utf-8")
    page.write_text("", encoding="utf-8")
    plot.unlink()
    done = retro("report", str(whole_run.folder))
    assert "tokens/task" in done.stdout
    assert page.read_text(encoding="utf-8") == before
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize("adapter", ["export", "."])
def test_reflect_reads_a_trajectory_and_writes_one_reflection(whole_run: Run, adapter: str) -> None:
    trajectory = {"opening": "you are in a room .", "steps": [{"action": "look", "observation": "nothing ."}]}
    arguments = ("reflect", str(whole_run.folder / adapter), "-n", "3", "--json")
    reflected = json.loads(retro(*arguments, stdin=json.dumps(trajectory)).stdout)
    assert len(reflected["candidates"]) == 3
    assert reflected["score"] == max(candidate["score"] for candidate in reflected["candidates"])


def test_a_mistake_is_told_with_exit_code_2(whole_run: Run, tmp_path: Path) -> None:
    for arguments, says in (
        (("run", str(whole_run.config), f"runs={tmp_path}", "--from", "sft"), "buffer.sqlite"),
        (("run", str(whole_run.config), f"runs={tmp_path}", "actor.model=no/such-model"), "no/such-model"),
        (("ppo", str(whole_run.config), f"runs={tmp_path}"), "sft"),
        (("run", str(whole_run.config), f"runs={tmp_path}", "environment.tasks.train=2000000"), "train"),
    ):
        done = retro(*arguments, code=2)
        assert "retro: " in done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
