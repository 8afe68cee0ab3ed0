import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from retro.config import ConfigError, RunConfig
from retro.config.view import UndeclaredKeyError
from retro.stage import Plan, Stage, Work, plan_stage, read_manifest, run_stage
from tests.builders import run_config

KEYS = ("model", "sft", "buffer.environments")


def stage_of(
    run: Callable[[RunConfig, Work], None] = lambda config, work: None,
    inputs: Mapping[str, str] = {},
    keys: Sequence[str] = KEYS,
) -> Stage:
    """A stage that does ``run`` and reads ``inputs``."""
    return Stage(name="sft", folder="sft", reads=(), keys=keys, inputs=lambda config: inputs, run=run)


def plan(config: RunConfig, inputs: Mapping[str, str] = {}, keys: Sequence[str] = KEYS) -> Plan:
    return plan_stage(stage_of(inputs=inputs, keys=keys), config)


def config_in(folder: Path, **sections: object) -> RunConfig:
    return run_config(folder, name="test", **sections)


def complete(config: RunConfig, inputs: dict[str, str], text: str = "weights", steps: int = 2) -> None:
    def train(config: RunConfig, work: Work) -> None:
        for step in range(1, steps + 1):
            work.log(step, loss=1.0 / step)
        path = work.output("adapter", work.folder / "adapter")
        path.mkdir(parents=True, exist_ok=True)
        (path / "file").write_text(text)

    assert run_stage(stage_of(train, inputs), config) == config.run_dir / "sft"


def lines(config: RunConfig) -> list[dict[str, object]]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_is_skipped_only_while_its_config_its_inputs_and_its_outputs_are_the_same(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert plan(config, {"buffer": "a"}).action == "run"
    complete(config, {"buffer": "a"})
    assert plan(config, {"buffer": "a"}).action == "up to date"

    def never(config: RunConfig, work: Work) -> None:
        raise AssertionError("it ran")

    run_stage(stage_of(never, {"buffer": "a"}), config)

    other_input = plan(config, {"buffer": "b"})
    assert (other_input.action, other_input.why) == ("run", "changed: input buffer")
    other_seed = plan(config_in(tmp_path, seed=1), {"buffer": "a"})
    assert (other_seed.action, other_seed.why) == ("run", "changed: config seed")
    other_rate = plan(config_in(tmp_path, sft={"learning_rate": 1.0}), {"buffer": "a"})
    assert (other_rate.action, other_rate.why) == ("run", "changed: config sft.learning_rate")
    assert plan(config_in(tmp_path, ppo={"steps": 3}), {"buffer": "a"}).action == "up to date"

    (config.run_dir / "sft" / "adapter" / "file").unlink()
    (config.run_dir / "sft" / "adapter").rmdir()
    gone = plan(config, {"buffer": "a"})
    assert (gone.action, gone.why) == ("run", "missing: adapter")


def test_a_stage_that_reads_a_key_which_it_did_not_declare_fails_and_names_it(tmp_path: Path) -> None:
    def train(config: RunConfig, work: Work) -> None:
        work.log(1, rate=config.sft.learning_rate)
        work.log(2, rate=config.ppo.learning_rate)

    config = config_in(tmp_path)
    with pytest.raises(UndeclaredKeyError, match=r"stage sft read ppo\.learning_rate without declaring it"):
        run_stage(stage_of(train), config)
    assert [line["step"] for line in lines(config)] == [1]
    hidden = replace(stage_of(), inputs=lambda config: {"pairs": config.reward.rating})
    with pytest.raises(UndeclaredKeyError, match=r"reward\.rating"):
        plan_stage(hidden, config)


def test_which_keys_decide_may_follow_from_the_config(tmp_path: Path) -> None:
    def keys(config: RunConfig) -> tuple[str, ...]:
        return ("ppo.algorithm", "reward.loss") if config.ppo.algorithm == "ppo" else ("ppo.algorithm",)

    stage = replace(stage_of(), keys=keys)
    run_stage(stage, config_in(tmp_path))
    assert plan_stage(stage, config_in(tmp_path, sft={"epochs": 9})).action == "up to date"
    assert plan_stage(stage, config_in(tmp_path, reward={"loss": "bce"})).why == "changed: config reward.loss"


def test_a_key_that_is_declared_since_counts_as_having_had_its_default(tmp_path: Path) -> None:
    complete(config_in(tmp_path, reward={"epochs": 9}), {})
    more = (*KEYS, "reward.epochs")
    assert plan(config_in(tmp_path), keys=more).action == "up to date"
    assert plan(config_in(tmp_path, reward={"epochs": 9}), keys=more).why == "changed: config reward.epochs"


def test_a_key_that_is_read_no_more_does_not_count(tmp_path: Path) -> None:
    complete(config_in(tmp_path), {})
    assert plan(config_in(tmp_path, sft={"epochs": 9}), keys=("model", "buffer.environments")).action == "up to date"


def test_rank_0_alone_runs_a_stage_that_does_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second:
        is_main_process, num_processes = False, 2

        def wait_for_everyone(self) -> None:
            pass

    monkeypatch.setattr("retro.stage.running._processes", lambda config: Second())
    ran: list[str] = []
    for name, trains in (("export", False), ("sft", True)):
        stage = stage_of(lambda config, work: ran.append(work.name))
        run_stage(replace(stage, name=name, folder=name, trains=trains), config_in(tmp_path))
    assert ran == ["sft"]
    assert not list(tmp_path.rglob("*"))  # and only rank 0 writes


def test_an_environments_options_count_but_those_that_say_how_fast_it_plays(tmp_path: Path) -> None:
    def config(**options: int) -> RunConfig:
        return config_in(tmp_path, environment={"name": "scienceworld", "options": options})

    keys = ("environment.name", "environment.options")
    run_stage(stage_of(keys=keys), config(steps=5, engines=2))
    assert plan(config(steps=5, engines=9), keys=keys).action == "up to date"
    other = plan(config(steps=6, engines=2), keys=keys)
    assert (other.action, other.why) == ("run", "changed: config environment.options.steps")
    more = plan(config(steps=5, engines=2, chapters=1), keys=keys)
    assert (more.action, more.why) == ("run", "changed: config environment.options.chapters")


def test_the_manifest_says_what_made_the_outputs_and_the_run_folder_keeps_the_resolved_config(tmp_path: Path) -> None:
    config = config_in(tmp_path, seed=7)
    complete(config, {"buffer": "a"})
    manifest = read_manifest(config.run_dir / "sft")
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

    def fail(config: RunConfig, work: Work) -> None:
        assert not work.resumed
        work.started -= 100  # as if it had worked for so long
        for step in (1, 2, 3):
            work.log(step, loss=float("nan"))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(stage_of(fail), config)
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    assert plan(config).action == "resume"

    def go_on(config: RunConfig, work: Work) -> None:
        assert work.resumed
        assert work.seconds_before >= 100
        work.cut_metrics(2)
        work.log(3, loss=0.5)

    run_stage(stage_of(go_on), config)
    assert [(line["stage"], line["step"]) for line in lines(config)] == [
        ("collect", 99),
        ("sft", 1),
        ("sft", 2),
        ("sft", 3),
    ]
    assert [line.get("loss") for line in lines(config)] == [None, None, None, 0.5]
    manifest = read_manifest(config.run_dir / "sft")
    assert manifest is not None
    assert manifest["seconds"] >= 100


def test_a_changed_stage_runs_anew_in_a_clean_folder_and_the_old_outputs_are_set_aside(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    complete(config, {}, "old", steps=3)
    complete(config_in(tmp_path, seed=1), {}, "new", steps=1)
    complete(config_in(tmp_path, seed=2), {}, "newest", steps=1)
    assert (config.run_dir / "sft" / "adapter" / "file").read_text() == "newest"
    assert (config.run_dir / "replaced" / "sft-1" / "adapter" / "file").read_text() == "old"
    assert (config.run_dir / "replaced" / "sft-2" / "adapter" / "file").read_text() == "new"
    assert [line["step"] for line in lines(config)] == [1]


def test_trackers_get_the_logged_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    config = config_in(tmp_path, trackers=["tensorboard"])
    accelerator = Accelerator(cpu=True)

    def train(config: RunConfig, work: Work) -> None:
        work.open_trackers(accelerator)
        work.log(1, loss=0.5, note="text")

    run_stage(stage_of(train), config)
    assert list((config.run_dir / "trackers").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr("retro.stage.work.util.find_spec", lambda name: None)
    config = config_in(tmp_path, trackers=["wandb"])
    stage = stage_of(lambda config, work: work.open_trackers(Accelerator(cpu=True)))
    with pytest.raises(ConfigError, match="'wandb' is missing: pip install wandb"):
        run_stage(stage, config)


def test_a_training_tells_its_progress_every_half_minute_and_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("retro.stage.work.time", SimpleNamespace(monotonic=lambda: now))
    work = Work("ppo", tmp_path, Plan("run", ""), {}, True, config_in(tmp_path), started=now, _told=now)
    with caplog.at_level("INFO", "retro"):
        for step in range(11, 51):  # it resumed after step 10
            now += 20.0
            work.progress(step, 50, score=step / 100)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "ppo: step 12 of 50, score 0.120, 12:40 left"
    assert said[-1] == "ppo: step 50 of 50, score 0.500"
    assert len(said) == 20
