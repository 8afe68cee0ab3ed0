"""Arms by name, from what a run folder holds: no model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.artifacts import write_json
from retro.config import BudgetSection, ConfigError, EnvironmentSection, PpoSection, RunConfig
from retro.evaluation.arms import Source, available_names, fingerprint, make_arm, selected_arms
from retro.evaluation.locate import find_adapter, reward_model, stage_adapter
from retro.evaluation.stage import checkpoint_name, stage_inputs, with_checkpoints


def adapter(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(text)
    return folder


def config_of(tmp_path: Path, **evaluate: object) -> RunConfig:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(tmp_path),
            "actor": {"model": str(model)},
            "model": {"base": str(model)},
            "evaluate": evaluate,
        }
    )


def finished(config: RunConfig, stage: str, outputs: dict[str, dict[str, str]] | None = None) -> None:
    write_json(config.run_dir / stage / "stage.json", {"status": "complete", "outputs": outputs or {}, "seconds": 1.0})


@pytest.fixture
def whole(tmp_path: Path) -> RunConfig:
    """A run with every stage's outputs, as the stages lay them out."""
    config = config_of(tmp_path, best_of=[8])
    adapter(config.run_dir / "sft" / "adapter", '{"sft": 1}')
    adapter(config.run_dir / "ppo" / "best" / "adapter", '{"best": 1}')
    adapter(config.run_dir / "ppo" / "checkpoint-10" / "adapter", '{"ten": 1}')
    adapter(config.run_dir / "reward" / "adapter")
    (config.run_dir / "reward" / "head.safetensors").write_bytes(b"head")
    finished(config, "sft", {"adapter": {"path": "adapter"}})
    finished(config, "ppo", {"best": {"path": "best"}})
    finished(config, "reward")
    return config


def test_a_run_without_models_has_the_untrained_arms(tmp_path: Path) -> None:
    names = list(available_names(config_of(tmp_path)))
    assert names == ["one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "oracle"]


def test_a_whole_run_has_every_arm(whole: RunConfig) -> None:
    arms = {arm.name: arm for arm in selected_arms(whole)}
    assert list(arms) == [
        *("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft", "ppo-env", "ppo-env-bon8", "oracle")
    ]
    assert arms["one-shot"].attempts == 1 and arms["retry"].attempts == 4
    assert arms["retry-sampled"].actor.temperature == 1.0 and arms["retry"].actor.temperature == 0.0
    assert arms["reflexion"].source is Source.BASE and arms["reflexion"].adapter is None
    assert arms["sft"].adapter == whole.run_dir / "sft" / "adapter"
    assert arms["ppo-env-bon8"].best_of == 8
    assert arms["ppo-env"].adapter == (whole.run_dir / "ppo" / "best" / "adapter").resolve()


def test_an_unfinished_stage_gives_no_arm(whole: RunConfig) -> None:
    write_json(whole.run_dir / "ppo" / "stage.json", {"status": "running", "outputs": {}})
    assert stage_adapter(whole, "ppo") is None
    assert "ppo-env" not in list(available_names(whole))
    with pytest.raises(ConfigError, match="'ppo-env' needs the ppo stage"):
        make_arm(whole, "ppo-env")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reflection", "did you mean 'reflexion'"),
        ("ppo-rm", "its ppo.reward is 'environment', which makes the arm 'ppo-env'"),
        ("oracle-bon4", "only an arm whose reflections are sampled"),
    ],
)
def test_mistakes_are_named(whole: RunConfig, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_arm(whole, name)


@pytest.mark.parametrize(
    ("ppo", "name", "alias", "wrong"),
    [
        ({"reward": "model"}, "ppo-rm", "ppo", "grpo-rm"),
        ({"algorithm": "grpo"}, "grpo-env", "grpo", "ppo-env"),
        ({"algorithm": "grpo", "reward": "mix"}, "grpo-mix", "grpo", "ppo"),
        ({"algorithm": "dpo"}, "dpo", "dpo-bon8", "ppo-env"),
    ],
)
def test_the_policys_arm_is_named_after_its_algorithm(
    whole: RunConfig, ppo: dict[str, str], name: str, alias: str, wrong: str
) -> None:
    config = whole.model_copy(update={"ppo": PpoSection.model_validate(ppo)})
    names = list(available_names(config))
    assert [name, f"{name}-bon8"] == names[names.index("sft") + 1 : -1]
    adapter = make_arm(config, name).adapter
    assert adapter == make_arm(config, alias).adapter == make_arm(whole, "ppo-env").adapter
    with pytest.raises(ConfigError, match=f"which makes the arm '{name}'"):
        make_arm(config, wrong)


def test_best_of_n_needs_a_reward_model(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert reward_model(config) is None
    with pytest.raises(ConfigError, match="needs the reward model"):
        make_arm(config, "reflexion-bon4")


def test_checkpoints_of_every_kind_are_found(whole: RunConfig, tmp_path: Path) -> None:
    plain = adapter(tmp_path / "plain")
    run = whole.run_dir
    assert find_adapter(plain) == plain
    assert find_adapter(run / "sft") == (run / "sft" / "adapter").resolve()
    assert find_adapter(run / "ppo" / "checkpoint-10") == run / "ppo" / "checkpoint-10" / "adapter"
    assert find_adapter(run / "ppo").parent.name == "best"
    assert find_adapter(run).parent.name == "best"
    exported = adapter(run / "export" / "adapter")
    assert find_adapter(run) == exported
    with pytest.raises(ConfigError, match="no such folder"):
        find_adapter(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no PEFT adapter"):
        find_adapter(tmp_path / "model")


def test_checkpoints_become_arms_and_their_names_may_not_clash(whole: RunConfig) -> None:
    path = str(whole.run_dir / "ppo" / "checkpoint-10")

    def with_checkpoints(**checkpoints: str) -> RunConfig:
        evaluate = whole.evaluate.model_copy(update={"arms": ["sft"], "checkpoints": checkpoints})
        return whole.model_copy(update={"evaluate": evaluate})

    arms = selected_arms(with_checkpoints(**{"ppo@10": path, "ppo@10-bon8": path}))
    assert [(arm.name, arm.best_of) for arm in arms] == [("sft", 1), ("ppo@10", 1), ("ppo@10-bon8", 8)]
    with pytest.raises(ConfigError, match="'sft' is already an arm"):
        selected_arms(with_checkpoints(sft=path))


def test_a_fingerprint_changes_with_what_decides_the_episodes_alone(whole: RunConfig) -> None:
    arm = make_arm(whole, "sft")
    before = fingerprint(arm, whole)
    assert before == fingerprint(arm, whole.model_copy(update={"name": "other", "device": "cpu"}))
    assert before != fingerprint(arm, whole.model_copy(update={"seed": 1}))
    assert before != fingerprint(make_arm(whole, "sft-bon8"), whole)
    assert before != fingerprint(arm, whole, "further")
    assert arm.adapter is not None
    (arm.adapter / "adapter_model.safetensors").write_bytes(b"trained on")
    assert before != fingerprint(arm, whole)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/mine", "mine"),
        ("runs/mine/sft/adapter", "mine/sft"),
        ("runs/mine/ppo", "mine/ppo"),
        ("runs/mine/ppo/checkpoint-10", "mine/ppo@10"),
        ("my-adapter", "my-adapter"),
    ],
)
def test_checkpoints_are_named_by_their_place(path: str, name: str) -> None:
    assert checkpoint_name(Path(path)) == name


def test_checkpoints_are_played_beside_the_controls(whole: RunConfig) -> None:
    ten = whole.run_dir / "ppo" / "checkpoint-10"
    arms = selected_arms(with_checkpoints(whole, [ten], best_of=[4]))
    assert [arm.name for arm in arms] == ["retry-sampled", "reflexion", "run/ppo@10", "run/ppo@10-bon4"]
    with pytest.raises(ConfigError, match="would both be called 'run/ppo@10'"):
        with_checkpoints(whole, [ten, ten / "adapter"])


def test_the_stage_reads_every_model(whole: RunConfig) -> None:
    assert set(stage_inputs(whole)) == {"actor", "base", "prompts", "sft", "ppo", "reward"}


def test_a_fingerprint_leaves_out_how_fast_and_at_what_cost_the_actor_is_asked(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    before = fingerprint(make_arm(config, "retry"), config)

    def now(**actor: object) -> str:
        changed = config.model_copy(update={"actor": config.actor.model_copy(update=actor)})
        return fingerprint(make_arm(changed, "retry"), changed)

    assert before == now(budget=BudgetSection(tokens=9), cache="answers.sqlite", requests_per_minute=5, max_retries=1)
    assert before != now(max_tokens=9)
    played = [
        config.model_copy(update={"environment": EnvironmentSection(name="scienceworld", options={"engines": engines})})
        for engines in (2, 3)
    ]
    assert len({fingerprint(make_arm(one, "retry"), one) for one in played}) == 1


def test_an_actors_adapter_counts_by_its_content(tmp_path: Path) -> None:
    path = adapter(tmp_path / "tuned")
    config = config_of(tmp_path)
    config = config.model_copy(update={"actor": config.actor.model_copy(update={"adapter": str(path)})})
    inputs, mark = stage_inputs(config), fingerprint(make_arm(config, "retry"), config)
    (path / "adapter_model.safetensors").write_bytes(b"trained on")
    assert stage_inputs(config) != inputs
    assert fingerprint(make_arm(config, "retry"), config) != mark
