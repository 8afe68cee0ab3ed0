"""Arms by name, from what a run folder holds: no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retro.artifacts import write_json
from retro.config import (
    BudgetSection,
    ConfigError,
    EnvironmentSection,
    EvaluateSection,
    PolicySection,
    RunConfig,
    parse_config,
    parse_section,
)
from retro.evaluation.arms import Arm, adapter_of, describe, fingerprint
from retro.evaluation.locate import reward_model, stage_adapter
from retro.evaluation.presets import available_names, selected_arms
from retro.evaluation.roles import Role, Writer
from retro.evaluation.stage import checkpoint_name, evaluation_inputs, with_checkpoints
from retro.retrospective.adapter_files import find_adapter
from retro.retrospective.samplers.best_of import BestOf
from tests.builders import run_config

REFINED = {"name": "refined", "policy": "base", "sampler": {"kind": "refine", "rounds": 2}}


def adapter(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(text)
    return folder


def config_of(tmp_path: Path, **evaluate: object) -> RunConfig:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return run_config(tmp_path, model, evaluate=evaluate)


def finished(config: RunConfig, stage: str, outputs: dict[str, dict[str, str]] | None = None) -> None:
    write_json(config.run_dir / stage / "stage.json", {"status": "complete", "outputs": outputs or {}, "seconds": 1.0})


def with_arms(config: RunConfig, *arms: str | dict[str, Any], **checkpoints: str) -> RunConfig:
    section = EvaluateSection.model_validate(
        {**config.evaluate.model_dump(), "arms": list(arms), "checkpoints": checkpoints}
    )
    return config.model_copy(update={"evaluate": section})


def arm_of(config: RunConfig, arm: str | dict[str, Any]) -> Arm:
    (made,) = selected_arms(with_arms(config, arm))
    return made


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
    assert arms["retry"].actor.temperature == 0.0
    sampled, all_sampled = arms["retry-sampled"], arm_of(whole, "retry-all-sampled")
    assert (sampled.actor, sampled.retries.temperature) == (whole.actor, 1.0)
    assert all_sampled.actor == all_sampled.retries == sampled.retries
    described = [describe(arm, whole) for arm in (sampled, all_sampled)]
    assert [arm["role"] for arm in described] == [Role.CONTROL, Role.CONTROL]
    assert ["retries" in arm["parts"] for arm in described] == [True, False]
    assert len({fingerprint(arm, whole) for arm in (sampled, all_sampled, arms["retry"])}) == 3
    assert arms["reflexion"].policy.writer is Writer.BASE and adapter_of(arms["reflexion"].policy, whole) is None
    assert adapter_of(arms["sft"].policy, whole) == whole.run_dir / "sft" / "adapter"
    assert arms["ppo-env-bon8"].sampler == BestOf.Options(n=8)
    assert adapter_of(arms["ppo-env"].policy, whole) == (whole.run_dir / "ppo" / "best" / "adapter").resolve()


def test_an_unfinished_stage_gives_no_arm(whole: RunConfig) -> None:
    write_json(whole.run_dir / "ppo" / "stage.json", {"status": "running", "outputs": {}})
    assert stage_adapter(whole, "ppo") is None
    assert "ppo-env" not in list(available_names(whole))
    with pytest.raises(ConfigError, match="'ppo-env' needs the ppo stage"):
        arm_of(whole, "ppo-env")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reflection", "did you mean 'reflexion'"),
        ("ppo-rm", "its ppo.reward is 'environment', which makes the arm 'ppo-env'"),
        ("oracle-bon4", "'oracle-bon4' is not an arm; did you mean"),
    ],
)
def test_mistakes_are_named(whole: RunConfig, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm_of(whole, name)


@pytest.mark.parametrize(
    ("ppo", "name", "alias", "wrong"),
    [
        ({"reward": "model"}, "ppo-rm", "ppo", "grpo-rm"),
        ({"algorithm": "grpo"}, "grpo-env", "grpo", "ppo-env"),
        ({"algorithm": "grpo", "reward": ["environment", "model"]}, "grpo-mix", "grpo", "ppo"),
        ({"algorithm": "dpo"}, "dpo", "dpo-bon8", "ppo-env"),
    ],
)
def test_the_policys_arm_is_named_after_its_algorithm(
    whole: RunConfig, ppo: dict[str, Any], name: str, alias: str, wrong: str
) -> None:
    config = whole.model_copy(update={"ppo": parse_section(PolicySection, ppo)})
    names = list(available_names(config))
    assert [name, f"{name}-bon8"] == names[names.index("sft") + 1 : -1]
    policies = [arm_of(config, name).policy, arm_of(config, alias).policy]
    assert policies[0] == policies[1]
    assert adapter_of(policies[0], config) == adapter_of(arm_of(whole, "ppo-env").policy, whole)
    with pytest.raises(ConfigError, match=f"which makes the arm '{name}'"):
        arm_of(config, wrong)


def test_best_of_n_needs_a_reward_model(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert reward_model(config) is None
    with pytest.raises(ConfigError, match="needs the reward model"):
        arm_of(config, "reflexion-bon4")


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

    arms = selected_arms(with_arms(whole, "sft", mine=path))
    assert [(arm.name, arm.policy.name, arm.policy.step) for arm in arms] == [
        ("sft", "sft", None),
        ("mine", "run/ppo", 10),
    ]
    with pytest.raises(ConfigError, match="'sft' is already an arm"):
        selected_arms(with_arms(whole, "sft", sft=path))
    with pytest.raises(ConfigError, match=r"\{name: mine-bon8, policy: .*, sampler: \{kind: best_of, n: 8\}\}"):
        selected_arms(with_arms(whole, "sft", **{"mine-bon8": path}))


def test_an_arm_is_its_parts(whole: RunConfig) -> None:
    ten = str(whole.run_dir / "ppo" / "checkpoint-10")
    mine = {
        "name": "mine",
        "policy": ten,
        "memory": {"size": 1},
        "sampler": {"kind": "best_of", "n": 3},
        "actor": {"temperature": 0.5},
        "attempts": 2,
    }
    arm = arm_of(whole, mine)
    assert (arm.name, arm.policy.path, arm.policy.step, arm.attempts) == ("mine", ten, 10, 2)
    assert arm.memory == whole.memory.model_copy(update={"size": 1})
    assert arm.actor == whole.actor.model_copy(update={"temperature": 0.5})
    described = describe(arm, whole)
    assert json.loads(json.dumps(described)) == described
    assert described["role"] == Role.TRAINED and described["parts"]["sampler"] == {"kind": "best_of", "n": 3}
    again = parse_config(yaml.safe_load(with_arms(whole, mine).dump()), "dumped")
    assert selected_arms(again) == [arm]


def test_equal_parts_are_equal_arms_whatever_they_are_called(whole: RunConfig) -> None:
    short = arm_of(whole, "ppo-env-bon8")
    written = arm_of(whole, {"name": "mine", "policy": "ppo", "sampler": {"kind": "best_of", "n": 8}})
    assert describe(short, whole) == describe(written, whole)
    assert fingerprint(short, whole) == fingerprint(written, whole)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"policy": "shufled"}, "'mine': policy 'shufled': there is no such folder; did you mean 'shuffled'"),
        ({"policy": "none", "sampler": {"kind": "best_of"}}, "'mine': only an arm whose reflections are sampled"),
        ({"policy": "base", "attempts": 9}, "'mine': attempts: 9 is more than evaluate.attempts, 4"),
        ({"policy": "none", "advice": 1}, "'mine': advice: with policy none nobody writes it"),
        ({"policy": "base", "advice": 1, "sampler": {"kind": "refine"}}, "'mine': advice is the policy's first"),
        ({"policy": "base", "actor": {"temprature": 1}}, "(?s)'mine'.*actor.temprature: .*did you mean 'temperature'"),
        ({"policy": "base", "memory": {"kind": "none"}}, "(?s)'mine'.*memory.kind"),
        ({"policy": "grpo"}, "'mine': this run's ppo.algorithm is 'ppo'"),
    ],
)
def test_parts_that_do_not_fit_are_named(whole: RunConfig, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm_of(whole, {"name": "mine", **parts})
    with pytest.raises(ConfigError, match=message):  # before a stage runs: planning asks for the inputs
        evaluation_inputs(with_arms(whole, {"name": "mine", **parts}))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([{"name": "mine"}], r"evaluate.arms.0.policy: Field required"),
        (
            [{"name": "mine", "policy": "base", "polcy": "base"}],
            r"evaluate.arms.0.polcy: unknown key; did you mean 'policy'",
        ),
        (
            [{"name": "mine", "policy": "base", "sampler": {"kind": "best_of", "m": 8}}],
            r"evaluate.arms.0.sampler.m: unknown key",
        ),
        (
            ["sft", {"name": "mine", "policy": "base", "attempts": 0}],
            r"evaluate.arms.1.attempts: Input should be greater",
        ),
        ([3], r"evaluate.arms.0: an arm is a short name, or a mapping"),
    ],
)
def test_an_arm_that_is_not_one_is_refused_when_the_config_is_read(arms: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"evaluate": {"arms": arms}}, "here")


def test_any_n_is_an_arm(whole: RunConfig) -> None:
    assert [arm_of(whole, f"sft-bon{n}").sampler for n in (3, 100)] == [BestOf.Options(n=3), BestOf.Options(n=100)]
    for name in ("sft-bon", "sft-bon0", "sft-bonus", "-bon3"):
        with pytest.raises(ConfigError, match=f"'{name}' is not an arm"):
            arm_of(whole, name)


def test_a_fingerprint_changes_with_what_decides_the_episodes_alone(whole: RunConfig) -> None:
    arm = arm_of(whole, {"name": "mine", "policy": str(whole.run_dir / "sft")})
    before = fingerprint(arm, whole)
    assert before == fingerprint(arm_of(whole, "sft"), whole)  # the same adapter, found in another way
    assert before == fingerprint(arm, whole.model_copy(update={"name": "other", "device": "cpu"}))
    assert before != fingerprint(arm, whole.model_copy(update={"seed": 1}))
    assert before != fingerprint(arm_of(whole, "sft-bon8"), whole)
    assert before != fingerprint(arm, whole, "further")
    (whole.run_dir / "sft" / "adapter" / "adapter_model.safetensors").write_bytes(b"trained on")
    assert before != fingerprint(arm, whole)


def test_only_an_arm_that_rewrites_depends_on_the_prompts_for_it(whole: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("actor", "reflection"):
        (folder / f"{name}.jinja").write_text("{{ opening }}")
    environment = whole.environment.model_copy(update={"prompts": str(folder)})
    config = whole.model_copy(update={"environment": environment})
    arms = [
        arm_of(config, {"name": kind, "policy": "sft", "sampler": kind}) for kind in ("first", "backtrack", "refine")
    ]
    before = [fingerprint(arm, config) for arm in arms]
    inputs = [evaluation_inputs(with_arms(config, kind)) for kind in ("sft", {**REFINED, "policy": "sft"})]
    (folder / "revision.jinja").write_text("{{ draft }}")
    after = [fingerprint(arm, config) for arm in arms]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False]
    assert inputs[0] == evaluation_inputs(with_arms(config, "sft"))
    assert inputs[1] != evaluation_inputs(with_arms(config, {**REFINED, "policy": "sft"}))


def test_backtracking_needs_a_reward_model_and_rewriting_does_not(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert arm_of(config, REFINED).rewrites
    with pytest.raises(ConfigError, match="needs the reward model"):
        arm_of(config, {"name": "walk", "policy": "base", "sampler": "backtrack"})


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
    own = {"format", "arms", "actor", "base", "prompts", "sft", "ppo", "reward"}
    assert set(evaluation_inputs(whole)) == own
    ten = str(whole.run_dir / "ppo" / "checkpoint-10")
    other = {"name": "mine", "policy": ten, "actor": {"model": str(whole.run_dir / "ppo"), "temperature": 1.0}}
    assert set(evaluation_inputs(with_arms(whole, other, ten=ten))) == own | {
        "policy of mine",
        "actor of mine",
        "actor of mine's retries",
        "policy of ten",
    }


def test_a_fingerprint_leaves_out_how_fast_and_at_what_cost_the_actor_is_asked(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    before = fingerprint(arm_of(config, "retry"), config)

    def now(**actor: object) -> str:
        changed = config.model_copy(update={"actor": config.actor.model_copy(update=actor)})
        return fingerprint(arm_of(changed, "retry"), changed)

    assert before == now(budget=BudgetSection(tokens=9), cache="answers.sqlite", requests_per_minute=5, max_retries=1)
    assert before != now(max_tokens=9)
    played = [
        config.model_copy(update={"environment": EnvironmentSection(name="scienceworld", options={"engines": engines})})
        for engines in (2, 3)
    ]
    assert len({fingerprint(arm_of(one, "retry"), one) for one in played}) == 1


def test_an_actors_adapter_counts_by_its_content(tmp_path: Path) -> None:
    path = adapter(tmp_path / "tuned")
    config = config_of(tmp_path)
    config = config.model_copy(update={"actor": config.actor.model_copy(update={"adapter": str(path)})})
    inputs, mark = evaluation_inputs(config), fingerprint(arm_of(config, "retry"), config)
    (path / "adapter_model.safetensors").write_bytes(b"trained on")
    assert evaluation_inputs(config) != inputs
    assert fingerprint(arm_of(config, "retry"), config) != mark
