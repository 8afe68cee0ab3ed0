"""Loading what a run exports, and plain adapters."""

import json
import shutil
import subprocess
import sys

import pytest

from retro import RetrospectiveModel
from retro.agent.documents import TrajectoryError
from retro.agent.records import ExportError, ExportRecord
from retro.models.adapter_files import AdapterMismatchError
from retro.types import Usage
from tests.tiny_export import write_export

DOCUMENT = {
    "opening": "You are in a room. Your task is to look.",
    "steps": [{"action": "look", "observation": "Nothing happens."}],
}


@pytest.fixture(scope="module")
def export(tiny_model_dir, tmp_path_factory):
    """An export folder as the stage writes it."""
    return write_export(tmp_path_factory.mktemp("export"), tiny_model_dir, "served")


def write(folder, record: ExportRecord) -> None:
    (folder / "retro.json").write_text(record.model_dump_json())


def altered(export, tmp_path, **changes):
    """A copy of the export whose record says something else."""
    shutil.copytree(export, tmp_path, dirs_exist_ok=True)
    write(tmp_path, ExportRecord.read(export).model_copy(update=changes))
    return tmp_path


def test_an_export_reflects_by_best_of_n(export):
    model = RetrospectiveModel.load(export, device="cpu")
    reflected = model.reflect(DOCUMENT, n=6)
    scores = [candidate.score for candidate in reflected.candidates]
    assert len(scores) == 6
    assert reflected.score == max(scores)
    assert reflected.text == reflected.candidates[scores.index(max(scores))].text
    assert model.reflect(DOCUMENT, n=6) == reflected
    assert RetrospectiveModel.load(export, device="cpu").reflect(DOCUMENT, n=6) == reflected
    assert all(candidate.usage != Usage() for candidate in reflected.candidates)


def test_without_a_reward_model_one_reflection_without_a_score(export, tmp_path):
    model = RetrospectiveModel.load(altered(export, tmp_path, reward=None), device="cpu")
    reflected = model.reflect(DOCUMENT)
    assert not model.has_reward_model
    assert (len(reflected.candidates), reflected.score) == (1, None)


def test_a_plain_adapter_needs_its_prompts_named(export):
    with pytest.raises(ExportError, match="names no prompts"):
        RetrospectiveModel.load(export / "adapter", device="cpu")
    model = RetrospectiveModel.load(export / "adapter", device="cpu", prompts="household")
    assert len(model.reflect(DOCUMENT).candidates) == 1


def test_an_older_export_whose_limit_exceeds_its_base_is_lowered_to_it(export, tmp_path, caplog):
    record = ExportRecord.read(export)
    old = record.model.model_copy(update={"max_prompt_tokens": 4096})
    model = RetrospectiveModel.load(altered(export, tmp_path, model=old), device="cpu")
    assert "records prompts of up to 4096 tokens; its base holds 1016 beside an answer" in caplog.text
    assert (
        model.reflect(DOCUMENT, n=1).text == RetrospectiveModel.load(export, device="cpu").reflect(DOCUMENT, n=1).text
    )


def test_another_base_is_an_error_that_names_both(export, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    record = ExportRecord.read(export)
    tokenizer = AutoTokenizer.from_pretrained(record.base.name)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    other = tmp_path / "other"
    LlamaForCausalLM(config).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(AdapterMismatchError) as caught:
        RetrospectiveModel.load(export, base=str(other), device="cpu")
    assert record.base.name in str(caught.value)
    assert str(other) in str(caught.value)


def test_the_same_base_elsewhere_is_fine(export, tiny_model_dir, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_model_dir)
    assert RetrospectiveModel.load(export, base=str(moved), device="cpu").reflect(DOCUMENT, n=2).text is not None


def test_a_base_that_is_gone_is_an_error_with_the_remedy(export, tmp_path):
    model = ExportRecord.read(export).model.model_copy(update={"base": str(tmp_path / "gone")})
    with pytest.raises(ExportError, match="give base"):
        RetrospectiveModel.load(altered(export, tmp_path, model=model), device="cpu")


def test_prompts_that_do_not_ship_must_be_given(export, tmp_path):
    with pytest.raises(ExportError, match=r"'mine'.*PromptSet"):
        RetrospectiveModel.load(altered(export, tmp_path, prompts="mine"), device="cpu")


@pytest.mark.parametrize(
    ("text", "words"), [("{", r"retro\.json"), (json.dumps({"format": 2}), "format"), (json.dumps({}), "base: Field")]
)
def test_a_damaged_record_is_named(tmp_path, text, words):
    (tmp_path / "retro.json").write_text(text)
    with pytest.raises(ExportError, match=words):
        RetrospectiveModel.load(tmp_path)


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(ExportError, match="neither an export"):
        RetrospectiveModel.load(tmp_path)


def test_a_folder_without_an_export_is_told_apart(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ExportError, match=f"{run} does not exist"):
        RetrospectiveModel.load(run)
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(ExportError, match=f"{run}: neither an export"):  # a config alone may be anything
        RetrospectiveModel.load(run)
    (run / "metrics.jsonl").touch()
    with pytest.raises(ExportError, match=f"{run} is a run without an export: retro run {run}/config.yaml --until"):
        RetrospectiveModel.load(run)
    (run / "export").mkdir()
    with pytest.raises(ExportError, match=f"{run} is a run: its export is {run}/export"):
        RetrospectiveModel.load(run)


def test_a_wrong_folder_is_told_before_torch_is_imported(tmp_path):
    program = f"""
import sys
from retro import RetrospectiveModel
try:
    RetrospectiveModel.load({str(tmp_path)!r})
except ValueError:
    assert "torch" not in sys.modules
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_trajectory_that_is_none_is_refused(export):
    with pytest.raises(TrajectoryError):
        RetrospectiveModel.load(export, device="cpu").reflect({"opening": "?"})
