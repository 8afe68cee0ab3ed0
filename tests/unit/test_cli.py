"""The command line: help that loads no torch, one line for a user's mistake, the plan, the estimates."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from retro.actors.budget import BudgetExceededError
from retro.cli import main
from retro.cli.buffer import buffer_url
from retro.cli.errors import is_for_the_user, one_line_errors
from retro.cli.estimate import memory_lines, most_episodes, parameters_by_name, read_checkpoint
from retro.cli.logs import quieten
from retro.cli.pipeline import last_screen, next_commands
from retro.cli.plan import plan_run, plan_table
from retro.cli.quickstart import quickstart_config
from retro.cli.stages import STAGES, ordered_stages, stage_range
from retro.config import ConfigError, EvaluateSection, RunConfig, parse_config
from retro.envs.base import EnvironmentFailedError
from retro.evaluation.arms import describe
from retro.evaluation.presets import planned_arms
from retro.reading import UnreadableError
from retro.types import ActorError
from retro.wire.failures import QuotaError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *(
        ["run"],
        ["quickstart"],
        *([stage] for stage in STAGES),
        ["report"],
        ["compare"],
        ["reflect"],
        ["serve"],
        ["mcp"],
        ["doctor"],
    ),
    *(
        ["buffer", "import"],
        ["buffer", "stats"],
        ["buffer", "export"],
        ["buffer", "migrate"],
        ["env", "list"],
        ["env", "play"],
        ["memory", "show"],
    ),
)


@pytest.fixture
def retro(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retro", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return run


Retro = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_helps_with_an_example(retro: Retro, command: list[str]) -> None:
    code, out, _ = retro(*command, "--help")
    assert code == 0
    assert f"  retro {' '.join(command)}" in out


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['retro', '--help']\n"
        "from retro.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    assert not {'torch', 'transformers', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_backend_of_jupyter_is_not_matplotlibs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    quieten()
    assert "MPLBACKEND" not in os.environ


def test_a_command_turns_the_libraries_bars_off_before_it_imports_them(
    retro: Retro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    retro("list")
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_version(retro: Retro) -> None:
    assert retro("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere.yaml"], "config nowhere.yaml: no such file"),
        (["run", "configs/quickstart.yaml", "ppo.stpes=1"], "did you mean 'steps'?"),
        (["run", "configs/quickstart.yaml", "--from", "pop"], "--from pop: no such stage"),
        (["run", "configs/quickstart.yaml", "--from", "ppo", "--until", "sft"], "sft comes before ppo"),
        (["rnu"], "No such command 'rnu'"),
        (["report", "nowhere"], "nowhere: not a run folder"),
        (["buffer", "stats", "nowhere"], "nowhere/buffer.sqlite: no such file"),
        (["buffer", "import", "jsonl", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["env", "play", "hosehold"], "'hosehold' is not known"),
        (["memory", "nowhere.yaml"], "config nowhere.yaml: no such file"),
        (["memory", "show", "nowhere"], "nowhere: no such folder"),
        (["env", "play", "household", "--task", "attic-1"], "attic-1"),
        (["serve", "nowhere", "--host", "0.0.0.0"], "RETRO_API_KEY is not set"),
        (["serve", "nowhere", "-n", "33"], "-n 33 is more than --max-n 32"),
        (["serve", "nowhere", "--port", "0", "--buffer", "b.sqlite"], "nowhere does not exist"),
        (["reflect", "nowhere", "--trajectory", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    retro: Retro, arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    code, _, err = retro(*arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_what_is_not_json_is_told(retro: Retro) -> None:
    code, _, err = retro("reflect", "export", stdin="{not json")
    assert code == 2
    assert "standard input: not JSON" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 20_000, "nested deeper"),
        ('{"a": 1' + "0" * 5_000 + "}", "beyond 64 bits"),
        ('{"opening": "\\ud800", "steps": []}', "half of a surrogate pair"),
        ('{"return": NaN}', "not a finite number"),
        ("[" + " " * 2**24 + "]", "longer than"),
    ],
)
def test_a_hostile_trajectory_is_one_line(retro: Retro, text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "trajectory.json"
    file.write_text(text)
    for code, _, err in (retro("reflect", "x", stdin=text), retro("reflect", "x", "--trajectory", str(file))):
        assert code == 2
        assert says in err
        assert err.count("\n") == 1


def test_an_empty_standard_input_is_told(retro: Retro) -> None:
    code, _, err = retro("reflect", "export", stdin="\n")
    assert code == 2
    assert "standard input: empty; a trajectory is a JSON object" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in ({}.__getitem__, int, json.loads, importlib.import_module):
        with pytest.raises((KeyError, ValueError, ImportError)), one_line_errors():
            bug("what no line of ours raised")
    assert is_for_the_user(ConfigError("ours"))
    assert is_for_the_user(FileNotFoundError(2, "No such file or directory", "some.yaml"))
    monkeypatch.setenv("RETRO_TRACEBACK", "1")
    with pytest.raises(ConfigError), one_line_errors():
        raise ConfigError("shown where it was raised")


@pytest.mark.parametrize("kind", [ActorError, EnvironmentFailedError, BudgetExceededError, QuotaError])
def test_what_stops_a_run_is_one_line(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise kind("what was played is kept")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "retro: what was played is kept\n"


def test_the_range_of_stages() -> None:
    assert stage_range(None, None) == ordered_stages()
    assert [stage.name for stage in stage_range("sft", "ppo")] == ["sft", "reward", "ppo"]
    assert [stage.name for stage in stage_range("ppo", "ppo")] == ["ppo"]


def test_a_stage_behind_one_that_runs_is_planned_to_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = parse_config(
        {"runs": str(tmp_path), "actor": {"model": str(tiny_model_dir)}, "model": {"base": str(tiny_model_dir)}}, "here"
    )
    plan = plan_run(config, [stage for stage in ordered_stages() if stage.applies(config)])
    assert list(plan) == [name for name in STAGES if name != "memory"]
    assert {stage.action for stage in plan.values()} == {"run"}
    assert plan["collect"].why == "not run yet"
    assert plan["sft"].why == "after collect"
    assert list(tmp_path.iterdir()) == []  # planning writes nothing


def test_a_dtype_that_does_not_train_is_refused_before_anything_is_played(
    retro: Retro, tmp_path: Path, tiny_model_dir: Path
) -> None:
    tiny = [f"runs={tmp_path}", f"actor.model={tiny_model_dir}", f"model.base={tiny_model_dir}", "model.dtype=float16"]
    for command in ("run", "sft", "reward", "ppo"):
        code, _, error = retro(command, "configs/quickstart.yaml", *tiny)
        assert code == 2 and "model.dtype=float16 does not train" in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("buffer.sqlite"))
    _, _, error = retro("evaluate", "configs/quickstart.yaml", *tiny)
    assert "does not train" not in error  # it writes and scores


def test_the_plan_names_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=100).print(plan_table({}, RunConfig()))
    assert capsys.readouterr().out.count("left out") == len(STAGES) - 1  # this run's memory does not learn


def test_a_memory_that_does_not_learn_has_no_bank_to_write(retro: Retro, tmp_path: Path) -> None:
    code, _, error = retro("memory", "configs/quickstart.yaml", f"runs={tmp_path}")
    assert (code, error.count("\n")) == (2, 1)
    assert "memory.kind=window does not learn across tasks" in error


def test_episodes_at_most_by_hand() -> None:
    tree = {
        "environment": {"tasks": {"train": 10, "validation": 2, "test": 5}},
        "collect": {"attempts": 3, "group": 4, "controls": 1, "splits": ["train", "validation"]},
        "ppo": {"reward": "environment", "steps": 10, "contexts": 3, "group": 2, "validate_every": 5},
        "evaluate": {"attempts": 4},
    }
    greedy = most_episodes(parse_config(tree, "here"))
    assert greedy["collect"] == 12 * (1 + 2 * 4)  # a deterministic actor's control is not played
    assert greedy["ppo"] == 10 * 3 * 2 + 3 * 64  # the guard measures before step 1, after 5 and after 10
    assert greedy["evaluate"] == 5 * 4
    sampled = most_episodes(parse_config({**tree, "actor": {"temperature": 1.0}}, "here"))
    assert sampled["collect"] == 12 * (1 + 2 * 5)
    assert most_episodes(parse_config({"ppo": {"reward": "model", "steps": 5}}, "here"))["ppo"] == 2 * 64
    assert most_episodes(parse_config({"ppo": {"algorithm": "dpo", "steps": 5}}, "here"))["ppo"] == 2 * 64
    unguarded = {"reward": "model", "validation_contexts": 0}
    assert most_episodes(parse_config({"ppo": unguarded}, "here"))["ppo"] == 0


def test_a_checkpoint_is_measured_by_its_headers(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = read_checkpoint(tiny_model_dir)
    assert checkpoint is not None
    assert checkpoint.parameters == AutoModelForCausalLM.from_pretrained(tiny_model_dir).num_parameters()
    assert (checkpoint.hidden, checkpoint.layers) == (32, 2)


def test_memory_is_told_for_a_folder_a_name_and_the_unknown(tiny_model_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tiny = {"base": str(tiny_model_dir), "lora": {"r": 4}}
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained, _ = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), lora
    ).get_nb_trainable_parameters()
    lines = memory_lines(parse_config({"model": tiny, "actor": {"model": "no/size-in-name"}}, "here"))
    assert "its name does not give its size" in lines[0]
    assert f"adapters of {trained:,} parameters" in lines[1]
    few = {"model": tiny | {"max_prompt_tokens": 100, "max_new_tokens": 10}, "ppo": {"contexts": 3, "group": 4}}
    for budget, tokens in ((16_384, 420), (300, 300), (64, 140)):
        lines = memory_lines(parse_config(few | {"ppo": few["ppo"] | {"token_budget": budget}}, "here"))
        assert f"activations of {tokens} tokens; ppo.token_budget={budget}" in lines[1]
    remote = {"base": "Qwen/Qwen2.5-7B-Instruct", "quantization": "nf4"}
    lines = memory_lines(parse_config({"model": remote, "actor": {"kind": "openai"}}, "here"))
    assert lines == [
        "actor: served by the OpenAI API, none here",
        "retrospective model: 3.7 GiB of weights (by its name), adapters and activations on top",
    ]
    two = {"actor": {"model": str(tiny_model_dir)}, "runner": {"kind": "processes", "workers": 2}}
    assert memory_lines(parse_config(two, "here"))[0].endswith(" MiB of weights in each of 2 processes")
    own = {"kind": "examples.extensions.rule_actor:RuleActor"}
    lines = memory_lines(parse_config({"actor": own}, "here"))
    assert lines[0] == "actor: not known, since examples.extensions.rule_actor:RuleActor is a kind of your own"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("lmsys/longchat-7b-16k", 7_000_000_000),
        ("some/model-0.5B", 500_000_000),
        ("HuggingFaceTB/SmolLM2-135M", 135_000_000),
        ("gpt2", None),
        ("a/b2b-agent", None),
    ],
)
def test_a_size_in_a_name(name: str, parameters: int | None) -> None:
    assert parameters_by_name(name) == parameters


def test_a_buffer_is_named_by_run_file_or_url() -> None:
    assert buffer_url("runs/a") == "sqlite:///runs/a/buffer.sqlite"
    assert buffer_url("/tmp/b.sqlite") == "sqlite:////tmp/b.sqlite"
    assert buffer_url("postgresql://host/db") == "postgresql://host/db"


def test_the_dry_run_prints_config_plan_and_estimates(retro: Retro, tmp_path: Path, tiny_model_dir: Path) -> None:
    code, out, err = retro(
        *("run", str(ROOT / "configs" / "quickstart.yaml"), f"runs={tmp_path}", "--dry-run"),
        *(f"actor.model={tiny_model_dir}", f"model.base={tiny_model_dir}", "ppo.steps=7"),
    )
    assert code == 0, err
    assert "steps: 7" in out
    assert "not run yet" in out
    assert "episodes an arm" in out
    assert "MiB of weights" in out
    assert "still missing" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_needs_no_clone(retro: Retro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = retro("quickstart", "--dry-run", "ppo.steps=7", "--until", "ppo")
    assert code == 0, err
    assert "steps: 7" in out
    assert f"model: {ROOT / 'data' / 'quickstart' / 'actor'}" in out
    assert f"base: {ROOT / 'data' / 'quickstart' / 'retrospective'}" in out
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_holds_the_quickstart_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import retro as package

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["force-include"].items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / source, tmp_path / target, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    monkeypatch.setattr(package, "__file__", str(tmp_path / "retro" / "__init__.py"))
    config = quickstart_config(["name=mine"])
    assert config.name == "mine"
    for place in (config.actor.model, config.model.base):
        assert Path(place).is_relative_to(tmp_path)
        assert (Path(place) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "package", "needs"),
    [
        (("run", "configs/quickstart.yaml"), "trl", "the stage sft needs trl"),
        (("evaluate", "configs/quickstart.yaml"), "matplotlib", "the stage evaluate needs matplotlib"),
    ],
)
def test_a_stage_names_the_extra_that_it_needs(
    retro: Retro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, str], package: str, needs: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = retro(command[0], str(ROOT / command[1]), f"runs={tmp_path}")
    assert (code, err) == (2, f"retro: {needs}: pip install 'retro[train]'\n")
    assert not list(tmp_path.rglob("manifest.json"))


def test_the_dry_run_tells_what_the_environment_lacks(retro: Retro, tmp_path: Path, tiny_model_dir: Path) -> None:
    code, out, err = retro(
        *("run", str(ROOT / "configs" / "hotpotqa.yaml"), f"runs={tmp_path}", "--dry-run", "--until", "collect"),
        *(
            f"environment.options.data={tmp_path}/none.json",
            f"model.base={tiny_model_dir}",
            "model.max_prompt_tokens=800",
        ),
    )
    assert code == 0, err
    assert f"still missing\n  environment.options of hotpotqa: data: there is no {tmp_path}/none.json" in out
    assert "collect: 4,140 episodes" in out
    assert "episodes an arm" not in out  # of the stages that are asked for alone


def test_an_environment_can_be_played_by_hand(retro: Retro) -> None:
    code, out, _ = retro("env", "play", "household", "--oracle", stdin="look\nfly away\n\n")
    assert code == 0
    assert out.startswith("[")
    assert out.endswith("return 0.00, no success\n")


def test_doctor_tells_versions_and_devices(retro: Retro) -> None:
    code, out, _ = retro("doctor")
    assert code == 0
    assert "torch" in out
    assert "device: auto" in out


def test_a_buffer_goes_out_and_in_again(retro: Retro, tmp_path: Path) -> None:
    line = {
        "environment": "mine",
        "task": "t1",
        "trajectory": {"opening": "A room.", "steps": [{"action": "look", "observation": "Nothing."}]},
        "return": 0.0,
        "success": False,
        "id": "e1",
    }
    trials = tmp_path / "trials.jsonl"
    trials.write_text(json.dumps(line) + "\nnot json\n", encoding="utf-8")
    buffer = str(tmp_path / "run")
    code, _, err = retro("buffer", "import", "jsonl", str(trials), "--buffer", buffer)
    assert code == 2
    assert "line 2: not JSON" in err
    code, out, _ = retro("buffer", "import", "jsonl", str(trials), "--buffer", buffer, "--on-error", "skip")
    assert code == 0
    assert "1 episodes added" in out
    assert "skipped line 2" in out
    assert retro("buffer", "stats", buffer)[0] == 0
    code, out, _ = retro("buffer", "export", buffer, str(tmp_path / "out.jsonl"))
    assert code == 0
    again = retro("buffer", "import", "jsonl", str(tmp_path / "out.jsonl"), "--buffer", buffer)
    assert "0 episodes added, 1 there already" in again[1]


def test_the_last_screen_shows_table_paths_and_ways_on(tmp_path: Path) -> None:
    arm = {"success_by_trial": [0.15, 0.5], "return_by_trial": [0.3, 0.6], "ci95": [[0.1, 0.2], [0.4, 0.6]]}
    config = RunConfig(evaluate=EvaluateSection(arms=["ppo-env"]))
    (played,) = planned_arms(config)
    arms = {"ppo-env": {**describe(played, config), **arm, "tokens_per_task": 1234.0, "seeds": 1}}
    results = {"tasks": 200, "attempts": 2, "arms": arms, "notes": ["what must be known"]}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "evaluation" / "report.html").write_text("<html>", encoding="utf-8")
    (tmp_path / "export" / "adapter").mkdir(parents=True)
    out = io.StringIO()
    last_screen(tmp_path, "configs/quickstart.yaml", Console(file=out, width=120))
    shown = out.getvalue()
    assert "ppo-env" in shown
    assert ".50 .40-.60" in shown
    assert "what must be known" in shown
    assert str(tmp_path / "export" / "adapter") in shown
    assert "report.html" in shown
    for _, command in next_commands(tmp_path, "configs/quickstart.yaml"):
        assert command in shown


def test_the_ways_on_are_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [command for _, command in next_commands(tmp_path / "run", "mine.yaml")]
    assert [command.split()[:3] for command in commands] == [["retro", "run", "mine.yaml"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("model.safetensors", (40_000).to_bytes(8, "little") + b"[" * 40_000),
        ("model.safetensors", (20).to_bytes(8, "little") + b'{"a":{"shape":[-1]}}'),
        ("config.json", b"\xff"),
        ("config.json", b'{"hidden_size": "many"}'),
        ("config.json", b'{"hidden_size": 1' + b"0" * 10_000 + b"}"),
    ],
)
def test_a_checkpoint_with_a_damaged_header_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableError, match=name):
        read_checkpoint(tmp_path)


def test_serve_names_its_extra_where_a_package_is_missing(retro: Retro, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = retro("serve", "runs/quickstart/export")
    assert (code, err) == (2, "retro: retro serve needs uvicorn: pip install 'retro[serve]'\n")
