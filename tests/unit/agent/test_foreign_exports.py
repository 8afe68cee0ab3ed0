"""Exports from elsewhere: what they cannot do, and what is noticed of their damage."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro import RetrospectiveModel
from retro.agent.integrity import file_records
from retro.agent.records import ExportError, ExportRecord, served_by
from retro.cli import main
from retro.config import ConfigError
from retro.training.rewards.model import measured_scale
from tests.unit.agent.choices_server import Server

DOCUMENT = {
    "opening": "You are in a room. Your task is to look.",
    "steps": [{"action": "look", "observation": "Nothing happens."}],
}
PARTS = ["adapter", "reward", "prompts"]
FILE = {"bytes": 0, "sha256": "0" * 64}
Edited = Callable[..., Path]


@pytest.fixture
def edited(served_export: Path, tmp_path: Path) -> Edited:
    """Makes a copy of the export with prompts, digests, and changes to its ``retro.json``, as plain JSON."""

    def edit(**changes: Any) -> Path:
        folder = tmp_path / "foreign"
        shutil.copytree(served_export, folder)
        shutil.copytree("retro/prompts/household", folder / "prompts" / "household")
        record = json.loads((folder / "retro.json").read_text())
        files = {name: dict(file) for name, file in file_records(folder, PARTS).items()}
        record |= {"environments": ["household"], "files": files}
        (folder / "retro.json").write_text(json.dumps({**record, **changes}))
        return folder

    return edit


@pytest.fixture
def base_with_code(tiny_model_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base with a configuration class of its own, and the file that its code writes when it is run."""
    base, marker = tmp_path / "coded", tmp_path / "marker"
    shutil.copytree(tiny_model_dir, base)
    (base / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(marker)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    return base, marker


def on(export: Path, base: Path, **changes: Any) -> dict[str, Any]:
    model = json.loads((export / "retro.json").read_text())["model"]
    return {**model, "base": str(base), **changes}


@pytest.mark.parametrize("asks", [False, True])
def test_an_export_cannot_allow_code(
    served_export: Path,
    edited: Edited,
    base_with_code: tuple[Path, Path],
    asks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, marker = base_with_code
    folder = edited(model=on(served_export, base, trust_remote_code=asks))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ExportError, match="--trust-remote-code") as caught:
        RetrospectiveModel.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    adapter = folder / "adapter"
    with pytest.raises((ConfigError, ExportError), match="--trust-remote-code"):
        RetrospectiveModel.load(adapter, base=str(base), device="cpu", prompts="household")
    assert not marker.exists()
    assert "--trust-remote-code" not in served_by(folder)
    assert "--trust-remote-code" in served_by(folder, trust_remote_code=True)


@pytest.mark.parametrize("memory", ["planted:Memory", {"kind": "planted:Memory", "options": {"size": 2}}])
def test_an_export_cannot_have_a_memory_imported(
    edited: Edited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, memory: Any
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "planted.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Memory: ...\n"
    )
    folder = edited(memory=memory)
    monkeypatch.chdir(tmp_path)
    model = RetrospectiveModel.load(folder, device="cpu", scores=False)
    assert model.reflect(DOCUMENT).text
    assert not marker.exists() and "planted" not in sys.modules
    assert "the memory planted:Memory is code of one's own" in caplog.text


@pytest.mark.parametrize("generator", ["planted:Generator", {"kind": "engine"}])
def test_an_export_names_no_generator(edited: Edited, served_export: Path, generator: Any) -> None:
    model = json.loads((served_export / "retro.json").read_text())["model"]
    with pytest.raises(ExportError, match="generator"):
        RetrospectiveModel.load(edited(model={**model, "generator": generator}), device="cpu")


def test_a_served_export_cannot_allow_code_either(
    served_export: Path, edited: Edited, base_with_code: tuple[Path, Path], server: Server
) -> None:
    base, marker = base_with_code
    for asks in (True, False):
        folder = edited(model=on(served_export, base, trust_remote_code=asks))
        with pytest.raises(ExportError, match="--trust-remote-code"):
            RetrospectiveModel.load(folder, device="cpu", server=server.url, scores=False)
        shutil.rmtree(base.parent / "foreign")
    assert not marker.exists()


def test_the_user_can_allow_code(
    served_export: Path, edited: Edited, base_with_code: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, marker = base_with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(base.parent / "modules"))
    for name in ("own.py", "config.json"):  # of the kind that the adapter was trained on
        file = base / name
        file.write_text(file.read_text().replace("'own'", "'llama'").replace('"own"', '"llama"'))
    folder = edited(model=on(served_export, base))
    RetrospectiveModel.load(folder, device="cpu")
    assert not marker.exists()
    assert RetrospectiveModel.load(folder, device="cpu", trust_remote_code=True).reflect(DOCUMENT, n=2).candidates
    assert marker.exists()


def test_the_command_line_allows_code_by_its_flag_alone(
    served_export: Path,
    edited: Edited,
    base_with_code: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, marker = base_with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(base.parent / "modules"))
    folder = edited(model=on(served_export, base, trust_remote_code=True))
    (tmp_path / "trajectory.json").write_text(json.dumps(DOCUMENT))
    command = ["retro", "reflect", str(folder), "--trajectory", str(tmp_path / "trajectory.json")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"retro reflect {folder} --trust-remote-code" in said
    assert not marker.exists()
    monkeypatch.setattr(sys, "argv", [*command, "--trust-remote-code"])
    with pytest.raises(SystemExit) as stopped:  # its code ran: a model of another kind than the adapter's
        main()
    assert "was trained on the base" in capsys.readouterr().err
    assert marker.exists()


def test_a_base_outside_of_the_export_is_named_before_it_is_read(
    served_export: Path, edited: Edited, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    caplog.set_level(logging.INFO, "retro")
    with pytest.raises(ExportError, match="elsewhere"):
        RetrospectiveModel.load(edited(model=on(served_export, elsewhere)), device="cpu")
    assert any("elsewhere (named by" in line for line in caplog.messages)
    shutil.rmtree(tmp_path / "foreign")
    caplog.clear()
    with pytest.raises(ExportError, match="no-such/model"):
        RetrospectiveModel.load(edited(model=on(served_export, Path("no-such/model"))), device="cpu")
    assert any("no-such/model of the Hugging Face Hub" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "name",
    [
        *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/base.json"),
        *("reward/head.safetensors", "prompts/household/reflection.jinja"),
    ],
)
def test_a_flipped_bit_or_a_missing_file_is_named(edited: Edited, name: str) -> None:
    folder = edited()
    RetrospectiveModel.load(folder, device="cpu").reflect(DOCUMENT, n=2)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: not what was exported: .*; export the run again"):
        RetrospectiveModel.load(folder, device="cpu")
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name}: missing, though"):
        RetrospectiveModel.load(folder, device="cpu")
    if name.startswith("prompts/"):
        assert RetrospectiveModel.load(folder, device="cpu", prompts="household", scores=False)


def test_a_file_of_another_size_is_not_read(edited: Edited) -> None:
    folder = edited()
    with (folder / "reward" / "head.safetensors").open("r+b") as file:
        file.truncate(2**43)  # sparse; to read it would take hours
    with pytest.raises(ExportError, match="not what was exported"):
        RetrospectiveModel.load(folder, device="cpu")


def test_a_link_to_itself_is_named(edited: Edited) -> None:
    folder = edited()
    base = folder / "adapter" / "base.json"
    base.unlink()
    base.symlink_to(base)
    with pytest.raises(ExportError, match=r"base\.json: a link out of the export"):
        RetrospectiveModel.load(folder, device="cpu")


def test_a_file_that_was_added_or_leads_out_is_refused(edited: Edited, tmp_path: Path) -> None:
    folder = edited()
    added = folder / "prompts" / "household" / "prompts.yaml"
    added.write_text("format: line\n")
    with pytest.raises(ExportError, match=r"prompts\.yaml: not among the files"):
        RetrospectiveModel.load(folder, device="cpu")
    added.unlink()
    (tmp_path / "secret").write_text("a secret")
    template = folder / "prompts" / "household" / "reflection.jinja"
    template.unlink()
    template.symlink_to(tmp_path / "secret")
    with pytest.raises(ExportError, match=r"reflection\.jinja: a link out of the export"):
        RetrospectiveModel.load(folder, device="cpu")


def test_an_export_in_the_hubs_cache_is_made_of_links(edited: Edited, tmp_path: Path) -> None:
    folder = edited()
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for number, file in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert RetrospectiveModel.load(snapshot, device="cpu", scores=False)


def test_an_older_export_loads_with_a_line(edited: Edited, caplog: pytest.LogCaptureFixture) -> None:
    assert RetrospectiveModel.load(edited(files=None), device="cpu", scores=False)
    assert [line for line in caplog.messages if "has no digests" in line and "export the run again" in line]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environments": ["../../x"]}, r"environments\.0"),
        ({"environments": ["a\\b"]}, r"environments\.0"),
        ({"environments": [".:"]}, r"environments\.0"),
        ({"prompts": "/etc"}, "prompts"),
        ({"files": {"../x": FILE}}, "files"),
        ({"files": {"a\n\x1b[31m": FILE}}, r"files\.a\\n\\x1b"),
        ({"files": {"/etc/passwd": FILE}}, "files"),
        ({"files": {"adapter/x": FILE | {"sha256": "abc"}}}, "files"),
        ({"files": {"adapter/x": FILE | {"bytes": -1}}}, "files"),
        ({"served_name": "--trust-remote-code"}, "served_name"),
        ({"served_name": "a\nb"}, "served_name"),
        ({"base": {"name": "\x1b[31m", "identity": "x#1"}}, r"base\.name"),
        ({"model": {"base": "--trust-remote-code"}}, "must not start with -"),
        ({"config_overrides": {"auto_map": {}}}, "only rope_parameters"),
        ({"reward": {"mean": 0.0, "std": 0.0, "loss": "bce"}}, r"reward\.std"),
        ({"reward": {"mean": 0.0, "std": -1.0, "loss": "bce"}}, r"reward\.std"),
        ({"reward": {"mean": None, "std": 1.0, "loss": "bce"}}, r"reward\.mean"),
        ({"reward": {"mean": 0.0, "std": float("nan"), "loss": "bce"}}, "NaN"),
        ({"reward": {"mean": 0.0, "std": 1.0, "loss": "guess"}}, r"reward\.loss"),
    ],
)
def test_a_record_that_says_too_much_is_refused_by_its_key(edited: Edited, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=rf"retro\.json: .*{words}") as caught:
        RetrospectiveModel.load(edited(**changes), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 20_000, b"[]", b'{"format": 1' + b"0" * 5_000 + b"}"])
def test_a_record_that_cannot_be_read_is_named(edited: Edited, content: bytes) -> None:
    folder = edited()
    (folder / "retro.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"retro\.json: ") as caught:
        ExportRecord.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "facts", ["[]", "{", "{}", '{"score_mean": 0, "score_std": 0, "loss": "bce"}', '{"score_mean": null}']
)
def test_a_reward_stage_without_a_scale_is_not_exported(tmp_path: Path, facts: str) -> None:
    (tmp_path / "reward.json").write_text(facts)
    with pytest.raises(ConfigError, match=r"reward\.json: .*; run the reward stage again"):
        measured_scale(tmp_path)
