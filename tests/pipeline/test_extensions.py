"""``examples/extensions``: one kind of one's own for each extension point, all in one run of the real commands."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from retro.config import load_config, resolve
from retro.config.points import POINTS
from retro.types import Episode, Split, from_json
from tests.pipeline.running import ROOT, Run, retro, started

FOLDER = ROOT / "examples" / "extensions"
CONFIG = FOLDER / "extensions.yaml"
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {
    "environment": "guessing_game:GuessingTasks",
    "actor": "rule_actor:RuleActor",
    "memory": "lessons:Lessons",
    "sampler": "shortest:Shortest",
    "reward": "brevity:Brevity",
    "algorithm": "best_of_group:BestOfGroup",
    "generator": "transcript:TranscriptGenerator",
    "runner": "watched_runner:WatchedRunner",
}
"""Extension point → the example."""
CANDIDATES = 4


def test_there_is_one_short_file_for_each_extension_point() -> None:
    assert FILES.keys() == POINTS.keys()
    assert {f"{target.partition(':')[0]}.py" for target in FILES.values()} == {
        path.name for path in FOLDER.glob("*.py")
    }
    for point, target in FILES.items():
        text = (FOLDER / target.partition(":")[0]).with_suffix(".py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, point
        assert ast.get_docstring(ast.parse(text)), point
        assert resolve(point, f"examples.extensions.{target}").__name__ == target.partition(":")[2]
        assert f"examples.extensions.{target}" in CONFIG.read_text(encoding="utf-8"), point


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("extensions")
    run = Run(CONFIG, folder / "extensions")
    retro(*tiny(run, tiny_model_dir))
    return run


def tiny(run: Run, model: Path, *more: str) -> tuple[str, ...]:
    """The shipped config at the smallest size, with its logs beside the run folder."""
    files = run.folder.parent
    return run.command(
        # with five guesses, as shipped, eight tasks may hold no retry that succeeds, and so nothing to learn
        *("environment.options.horizon=6", "environment.tasks={train: 12, validation: 2, test: 4}"),
        *(f"model.base={model}", "model.max_new_tokens=6"),
        *("sft.max_steps=2", "ppo.steps=2", "ppo.contexts=2", "ppo.validate_every=2"),
        *("ppo.validation_contexts=2", "evaluate.bootstrap=100", "evaluate.permutations=200"),
        *(
            f"runner.options.log={files / 'attempts.jsonl'}",
            f"model.generator.options.file={files / 'transcript.jsonl'}",
        ),
        *more,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def collected(run: Run) -> list[Episode]:
    with run.buffer() as buffer:
        return list(buffer.episodes())


def evaluated(run: Run) -> dict[str, list[Episode]]:
    """The episodes of each arm."""
    arms: dict[str, list[Episode]] = {}
    for line in lines(run.folder / "evaluation" / "episodes.jsonl"):
        arms.setdefault(line["arm"], []).append(from_json(Episode, line["episode"]))
    return arms


def test_the_environment_is_played_by_the_actor(run: Run) -> None:
    steps = [step for episode in collected(run) for step in episode.trajectory.steps]
    assert {episode.task.environment for episode in collected(run)} == {"guessing"}
    assert {step.observation for step in steps} == {"Higher.", "Lower.", "That is it."}
    assert all(step.thought.startswith("It is between ") for step in steps)


def test_the_actor_obeys_the_oracle(run: Run) -> None:
    retries = [episode for episode in evaluated(run)["oracle"] if episode.reflection is not None]
    assert retries
    for episode in retries:
        assert episode.success
        assert len(episode.trajectory.steps) == 1


def test_the_memory_shows_what_helped_on_other_tasks(run: Run) -> None:
    episodes = {episode.id: episode for episode in collected(run)}
    helped = {
        id for id, e in episodes.items() if e.task.split is Split.TRAIN and e.success and e.reflection is not None
    }
    assert helped, "there must be something to learn"
    assert not helped & {id for episode in episodes.values() for id in episode.recalled.ids}
    shortest = sorted(helped, key=lambda id: (len(episodes[id].reflection.text), id))[:2]  # type: ignore[union-attr]
    shown = tuple(f"From another task: {episodes[id].reflection.text}" for id in shortest)  # type: ignore[union-attr]
    for arm, played in evaluated(run).items():
        for episode in played:
            assert episode.recalled.ids[: len(shortest)] == tuple(shortest), arm
            assert episode.recalled.entries[: len(shortest)] == shown, arm


def test_the_sampler_keeps_the_shortest_of_what_the_generator_wrote_down(run: Run) -> None:
    transcript = lines(run.folder.parent / "transcript.jsonl")
    groups = [line["responses"] for line in transcript if len(line["responses"]) == CANDIDATES]
    shortest = [min(group, key=lambda pair: (pair[1] == "length", len(pair[0])))[0] for group in groups]
    kept = [episode.reflection.text for episode in evaluated(run)["sft-shortest"] if episode.reflection]
    assert kept
    assert sorted(kept) == sorted(shortest)
    assert any(kept[0] != group[0][0] for group in groups), "the first one would not have done"


def test_the_reward_takes_away_for_each_word_too_many(run: Run) -> None:
    rows = lines(run.folder / "ppo" / "rollouts" / "step-1.jsonl")
    for row in rows:
        brevity = min(0.0, 1 - len(row["reflection"].split()) / 4)
        cut = row["finish_reason"] == "length"
        assert row["score"] == pytest.approx(row["gain"] + 0.1 * brevity - 1.0 * cut)
    assert any(len(row["reflection"].split()) > 4 for row in rows)


def test_the_algorithm_learns_in_the_place_of_ppo(run: Run) -> None:
    step = next(line for line in run.metrics("ppo") if line["step"] == 1)
    assert {"loss", "grad_norm/policy"} <= step.keys()
    assert not {"kl", "clip_fraction", "grad_norm/value"} & step.keys()
    before, after = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.folder / "sft" / "adapter", run.folder / "ppo" / "checkpoint-2")
    )
    assert any(not before[name].equal(after[name]) for name in before)


def test_the_generator_wrote_down_what_every_stage_sampled(run: Run) -> None:
    transcript = lines(run.folder.parent / "transcript.jsonl")
    written = {text for line in transcript for text, _ in line["responses"]}
    assert written >= {episode.reflection.text for episode in collected(run) if episode.reflection}
    assert {"base", "step-0", "step-1"} <= {line["version"] for line in transcript}


def test_the_runner_wrote_a_line_for_every_attempt(run: Run) -> None:
    log = {(line["id"], line["return"]) for line in lines(run.folder.parent / "attempts.jsonl")}
    episodes = [*collected(run), *(episode for played in evaluated(run).values() for episode in played)]
    kept = {(episode.id, episode.return_) for episode in episodes}
    assert kept < log, "the policy stage's retries are attempts, too"


def test_another_runner_leaves_finished_stages_up_to_date(run: Run, tiny_model_dir: Path) -> None:
    again = retro(*tiny(run, tiny_model_dir, "runner.options.at_once=1", "--until", "collect"))
    assert "collect: up to date" in again.stderr


def test_the_config_says_what_the_sampler_draws() -> None:
    arms = [arm for arm in load_config(CONFIG).evaluate.arms if not isinstance(arm, str)]
    assert [arm.sampler.model_dump()["options"] for arm in arms] == [{"n": CANDIDATES}]


def test_a_config_of_ones_own_kinds_is_loaded_without_large_packages() -> None:
    targets = [(point, f"examples.extensions.{target}") for point, target in FILES.items()]
    done = started(
        "-c",
        f"import sys; from retro.config import load_config, resolve; load_config({str(CONFIG)!r})\n"
        f"for point, target in {targets!r}: resolve(point, target)\n"
        "print(sorted({'torch', 'transformers', 'trl', 'accelerate', 'peft', 'openai'} & sys.modules.keys()))",
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_what_the_page_shows_is_in_the_config() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert len(blocks) > len(FILES), "one for each point, and one at the beginning"
    for block in blocks:
        assert contains(shipped, yaml.safe_load(block)), block


def test_the_pages_table_has_every_point_with_its_kinds() -> None:
    rows = dict(re.findall(r"^\| (\w+) \|.*\|([^|]+)\|$", PAGE, re.MULTILINE))
    kinds = {point: re.findall(r"`([\w-]+)`", cell) for point, cell in rows.items() if point in POINTS}
    assert kinds == {point: list(POINTS[point].kinds) for point in FILES}


def contains(whole: Any, part: Any) -> bool:
    """Whether ``part`` says nothing that ``whole`` does not say."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(item in whole for item in part)
    return bool(whole == part)
