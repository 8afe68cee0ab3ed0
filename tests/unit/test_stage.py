import json
from pathlib import Path

import pytest

from retro.config import ConfigError, RunConfig, parse_config
from retro.stage import open_stage, open_trackers, plan_stage, read_manifest, stage_folder

SECTIONS = ("model", "sft", "buffer.environments")


def config_in(folder: Path, **sections: object) -> RunConfig:
    return parse_config({"runs": str(folder), "name": "test", "device": "cpu", **sections}, "test")


def complete(config: RunConfig, inputs: dict[str, str], text: str = "weights", steps: int = 2) -> None:
    with open_stage(config, "sft", inputs, SECTIONS) as stage:
        assert not stage.up_to_date
        for step in range(1, steps + 1):
            stage.log(step, loss=1.0 / step)
        path = stage.output("adapter", stage.folder / "adapter")
        path.mkdir(parents=True, exist_ok=True)
        (path / "file").write_text(text)


def lines(config: RunConfig) -> list[dict[str, object]]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_is_skipped_only_while_its_config_its_inputs_and_its_outputs_are_the_same(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert plan_stage(config, "sft", {"buffer": "a"}, SECTIONS).action == "run"
    complete(config, {"buffer": "a"})
    assert plan_stage(config, "sft", {"buffer": "a"}, SECTIONS).action == "up to date"
    with open_stage(config, "sft", {"buffer": "a"}, SECTIONS) as stage:
        assert stage.up_to_date

    other_input = plan_stage(config, "sft", {"buffer": "b"}, SECTIONS)
    assert (other_input.action, other_input.why) == ("run", "changed: input buffer")
    other_seed = plan_stage(config_in(tmp_path, seed=1), "sft", {"buffer": "a"}, SECTIONS)
    assert (other_seed.action, other_seed.why) == ("run", "changed: config seed")
    other_rate = plan_stage(config_in(tmp_path, sft={"learning_rate": 1.0}), "sft", {"buffer": "a"}, SECTIONS)
    assert (other_rate.action, other_rate.why) == ("run", "changed: config sft.learning_rate")
    not_ours = plan_stage(config_in(tmp_path, ppo={"steps": 3}), "sft", {"buffer": "a"}, SECTIONS)
    assert not_ours.action == "up to date"

    (stage_folder(config, "sft") / "adapter" / "file").unlink()
    (stage_folder(config, "sft") / "adapter").rmdir()
    gone = plan_stage(config, "sft", {"buffer": "a"}, SECTIONS)
    assert (gone.action, gone.why) == ("run", "missing: adapter")


def test_an_environments_options_count_but_those_that_say_how_fast_it_plays(tmp_path: Path) -> None:
    def config(**options: int) -> RunConfig:
        return config_in(tmp_path, environment={"name": "scienceworld", "options": options})

    sections = ("environment.name", "environment.options")
    with open_stage(config(steps=5, engines=2), "collect", {}, sections):
        pass
    assert plan_stage(config(steps=5, engines=9), "collect", {}, sections).action == "up to date"
    other = plan_stage(config(steps=6, engines=2), "collect", {}, sections)
    assert (other.action, other.why) == ("run", "changed: config environment.options.steps")


def test_the_manifest_says_what_made_the_outputs_and_the_run_folder_keeps_the_resolved_config(tmp_path: Path) -> None:
    config = config_in(tmp_path, seed=7)
    complete(config, {"buffer": "a"})
    manifest = read_manifest(stage_folder(config, "sft"))
    assert manifest is not None
    assert manifest["status"] == "complete"
    assert manifest["inputs"] == {"buffer": "a"}
    assert manifest["seed"] == 7
    assert manifest["outputs"]["adapter"]["path"] == "adapter"
    assert len(manifest["outputs"]["adapter"]["digest"]) == 64
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["seconds"] >= 0
    from retro.config import load_config

    assert load_config(config.run_dir / "config.yaml") == config


def test_an_interrupted_stage_resumes_with_its_wall_time_and_its_lines_cut_to_the_checkpoint(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    (config.run_dir).mkdir(parents=True)
    (config.run_dir / "metrics.jsonl").write_text('{"stage": "collect", "step": 99}\n')
    with pytest.raises(RuntimeError, match="power cut"), open_stage(config, "sft", {}, SECTIONS) as stage:
        stage.started -= 100  # as if it had worked for so long
        for step in (1, 2, 3):
            stage.log(step, loss=float("nan"))
        raise RuntimeError("power cut")
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    assert plan_stage(config, "sft", {}, SECTIONS).action == "resume"

    with open_stage(config, "sft", {}, SECTIONS) as stage:
        assert stage.resumed
        assert stage.seconds_before >= 100
        stage.cut_metrics(2)
        stage.log(3, loss=0.5)
    assert [(line["stage"], line["step"]) for line in lines(config)] == [
        ("collect", 99),
        ("sft", 1),
        ("sft", 2),
        ("sft", 3),
    ]
    assert [line.get("loss") for line in lines(config)] == [None, None, None, 0.5]
    manifest = read_manifest(stage_folder(config, "sft"))
    assert manifest is not None
    assert manifest["seconds"] >= 100


def test_a_changed_stage_runs_anew_in_a_clean_folder_and_the_old_outputs_are_set_aside(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    complete(config, {}, "old", steps=3)
    complete(config_in(tmp_path, seed=1), {}, "new", steps=1)
    complete(config_in(tmp_path, seed=2), {}, "newest", steps=1)
    assert (stage_folder(config, "sft") / "adapter" / "file").read_text() == "newest"
    assert (config.run_dir / "replaced" / "sft-1" / "adapter" / "file").read_text() == "old"
    assert (config.run_dir / "replaced" / "sft-2" / "adapter" / "file").read_text() == "new"
    assert [line["step"] for line in lines(config)] == [1]


def test_trackers_get_the_logged_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    config = config_in(tmp_path, trackers=["tensorboard"])
    accelerator = Accelerator(cpu=True)
    with open_stage(config, "sft", {}, SECTIONS) as stage:
        open_trackers(accelerator, config, stage)
        stage.log(1, loss=0.5, note="text")
    assert list((config.run_dir / "trackers").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr("retro.stage.util.find_spec", lambda name: None)
    config = config_in(tmp_path, trackers=["wandb"])
    with (
        pytest.raises(ConfigError, match="'wandb' is missing: pip install wandb"),
        open_stage(config, "sft", {}, SECTIONS) as stage,
    ):
        open_trackers(Accelerator(cpu=True), config, stage)
