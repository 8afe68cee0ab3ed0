import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig
from retro.models.loading import load_base, load_tokenizer
from retro.retrospective.encoding import Encoder
from retro.stage import NothingToLearnError, plan_stage, run_stage
from retro.training import sft
from retro.training.examples import encoder_of_run
from retro.training.sft import (
    IGNORED,
    last_whole_checkpoint,
    read_examples,
    split_batch,
)
from retro.training.sft import STAGE as SFT
from retro.types import Reflection
from tests.rated_groups import GOOD, fill

MakeConfig = Callable[..., RunConfig]
QUICK = {"epochs": 6, "batch_size": 8, "microbatch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 4}


def lines(config: RunConfig) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def encoder_of(config: RunConfig) -> Encoder:
    return encoder_of_run(load_tokenizer(config.model), config)


def test_only_the_reflection_and_its_end_are_learnt_and_only_of_good_ones(filled_config: MakeConfig) -> None:
    config = filled_config()
    tokenizer = load_tokenizer(config.model)
    train, validation = read_examples(config, encoder_of(config))
    assert (len(train), len(validation)) == (24, 12)  # two of the four reflections of each group gained
    for example in train:
        learnt = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
        assert learnt == [label for label in example.labels if label != IGNORED]
        assert learnt[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(learnt[:-1]) in GOOD
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(example.input_ids[: -len(learnt)]).endswith("reflection:")


def test_a_reflection_that_was_cut_teaches_no_end(filled_config: MakeConfig) -> None:
    encoder = encoder_of(filled_config())
    whole = encoder.response(Reflection("look in", "base"))
    assert encoder.response(Reflection("look in", "base", finish_reason="length")) == whole[:-1]


def test_the_adapter_learns_loads_in_plain_peft_and_the_stage_is_then_up_to_date(filled_config: MakeConfig) -> None:
    from peft import PeftModel

    config = filled_config(sft=QUICK)
    folder = run_stage(SFT, config)
    losses = [line["loss"] for line in lines(config) if "loss" in line]
    assert len(losses) == 18
    assert losses[-1] < 0.7 * losses[0]
    validation = [line["validation_loss"] for line in lines(config) if "validation_loss" in line]
    assert validation[-1] < validation[0]
    model = PeftModel.from_pretrained(load_base(config.model, "cpu"), folder / "adapter")
    moved = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(bool(value.abs().sum() > 0) for value in moved)
    assert plan_stage(SFT, config).action == "up to date"


def test_a_killed_training_resumes_to_the_same_metrics_and_weights(
    filled_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {**QUICK, "epochs": 3}
    unbroken = filled_config(name="unbroken", sft=section)
    run_stage(SFT, unbroken)
    broken = filled_config(name="broken", sft=section)
    on_log = sft.StageLog.on_log

    def killed(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == 6:
            raise KeyboardInterrupt
        on_log(self, args, state, control, logs, **kwargs)

    monkeypatch.setattr(sft.StageLog, "on_log", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(SFT, broken)
    monkeypatch.setattr(sft.StageLog, "on_log", on_log)
    # the kill also cut a checkpoint short
    (broken.run_dir / "sft" / "checkpoints" / "checkpoint-5").mkdir()
    run_stage(SFT, broken)
    assert lines(broken) == lines(unbroken)
    left, right = (load_file(c.run_dir / "sft/adapter/adapter_model.safetensors") for c in (broken, unbroken))
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_nothing_good_to_imitate_is_an_error_with_a_remedy(make_config: MakeConfig) -> None:
    config = make_config()
    with ReplayBuffer(config.buffer_url) as buffer:
        fill(buffer, good=False)
    with pytest.raises(NothingToLearnError, match=r"of 36 in sqlite.*the best is 0\.000.*collect more"):
        run_stage(SFT, config)


def test_a_batch_is_shared_evenly_or_refused() -> None:
    assert split_batch(32, 32, 1) == (32, 1)
    assert split_batch(32, 5, 2) == (4, 4)
    assert split_batch(6, 32, 2) == (3, 1)
    with pytest.raises(ConfigError, match=r"sft\.batch_size=5 cannot be shared by 2"):
        split_batch(5, 1, 2)


def test_a_checkpoint_without_its_last_file_is_passed_over(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, '{"global_'), (9, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    found = last_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-9"


@pytest.mark.parametrize(("unknown", "warns"), [(3, True), (None, False), (7, False)])
def test_a_base_that_does_not_have_the_words_is_warned_of(
    caplog: pytest.LogCaptureFixture, unknown: int | None, warns: bool
) -> None:
    sft.warn_of_unknown_tokens([sft.Example([1, 3, 3, 2], [-100, -100, -100, 2])], unknown, "some/base")
    assert ("50 % of the tokens are unknown to the base some/base" in caplog.text) == warns
