"""Stage ``sft``: imitate the reflections that helped (Retroformer, stage 1).

Reads the buffer's reflections rated above ``sft.threshold`` on training tasks; TRL's ``SFTTrainer`` fits a LoRA adapter
to the reflections' tokens; writes ``sft/adapter`` in plain PEFT format. It also logs the loss on good reflections of
validation tasks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerState

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import RatedReflection, sft_examples
from retro.config import ConfigError, RunConfig
from retro.layout import ADAPTER
from retro.models.adapter_files import write_identity
from retro.models.adapters import SharedBase, lora_config
from retro.models.exactness import check_base
from retro.models.loading import base_identity, load_base, load_tokenizer, resolve_device
from retro.models.sharding import launched_pieces
from retro.retrospective.encoding import Encoder
from retro.stage import Stage, Work
from retro.training.examples import MODEL_KEYS, encoder_of_run, imitated, training_inputs, without_too_long
from retro.training.trl import largest_divisor, require_kept, trainer_arguments
from retro.types import Split

if TYPE_CHECKING:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token without a loss."""
MOST_UNKNOWN = 0.2
"""The share of tokens that may be unknown to the base without a warning."""
LOGGED = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "validation_token_accuracy",
}
"""The metrics in ``metrics.jsonl``: the trainer's name → ours."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a reflection as one sequence; only the reflection's tokens, including its end, have a loss."""

    input_ids: list[int]
    labels: list[int]


def train_adapter(config: RunConfig, work: Work) -> None:
    """Train the adapter.

    Raises:
        NothingToLearnError: if no training reflection is rated above the threshold.
        ConfigError: if the batch size cannot be divided over the processes.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl.trainer.sft_trainer import SFTTrainer  # here: planning a run imports this module, and TRL takes seconds

    tokenizer = load_tokenizer(config.model)
    encoder = encoder_of_run(tokenizer, config)
    train, validation = read_examples(config, encoder)
    arguments = sft_arguments(config, work.folder, bool(validation))  # before the base, since DeepSpeed loads by them
    pieces = launched_pieces("sft", config.model, own_loop=False)
    base = load_base(config.model, "cpu" if pieces == "fsdp2" else resolve_device(config.device))
    if pieces is None:  # no process has enough of a base in pieces to test it
        check_base(SharedBase(base, tokenizer, config.model.revision), config.model.lora)
    base.config.use_cache = False
    set_seed(arguments.seed)  # before TRL 1.16, the trainer draws the adapter's first weights before it seeds
    trainer = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=Dataset.from_list(list(map(asdict, train))),
        eval_dataset=Dataset.from_list(list(map(asdict, validation))) if validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(config.model.lora),
        callbacks=[StageLog(work)],
    )
    trainer.remove_callback(PrinterCallback)  # its lines are in metrics.jsonl
    require_kept(trainer, train)
    work.open_trackers(trainer.accelerator)
    checkpoint = last_whole_checkpoint(Path(str(arguments.output_dir))) if work.resumed else None
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    work.cut_metrics(step)
    trainer.accelerator.wait_for_everyone()
    tokens = sum(label != IGNORED for item in train for label in item.labels)
    logger.info("sft: %d reflections with %d tokens", len(train), tokens)
    warn_of_unknown_tokens(train, tokenizer.unk_token_id, config.model.base)
    # A checkpoint holds pickles (optimiser, RNG). They are read only from this stage's own folder, never from files
    # that a user was sent.
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    adapter = work.output("adapter", work.folder / ADAPTER)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if pieces else None  # by all processes
    if work.main:
        save_adapter(trainer, weights, base, config.model.revision, adapter)


def read_examples(config: RunConfig, encoder: Encoder) -> tuple[list[Example], list[Example]]:
    """The examples of training tasks, and those of validation tasks."""
    train, section = [encode(encoder, item) for item in imitated(config, encoder)], config.sft
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        good = sft_examples(buffer, section.rating, section.threshold, (Split.VALIDATION,), config.buffer.environments)
        fitting = without_too_long(good, encoder, "reflections on validation tasks")
        return train, [encode(encoder, item) for item in fitting]


def warn_of_unknown_tokens(train: Sequence[Example], unknown: int | None, base: str) -> None:
    """Warn if the base does not have the words of the data: it would learn to write about what it cannot read."""
    ids = [id for item in train for id in item.input_ids]
    share = ids.count(unknown) / len(ids) if unknown is not None else 0.0
    if share > MOST_UNKNOWN:
        logger.warning(
            "sft: %.0f %% of the tokens are unknown to the base %s: take a base that has the words of your data",
            100 * share,
            base,
        )


def encode(encoder: Encoder, item: RatedReflection) -> Example:
    prompt, response = encoder.prompt(item.context.episode), encoder.response(item.reflection)
    return Example(prompt + response, [IGNORED] * len(prompt) + response)


def sft_arguments(config: RunConfig, folder: Path, validate: bool) -> SFTConfig:
    """The trainer's arguments."""
    from accelerate import PartialState
    from trl.trainer.sft_config import SFTConfig

    section = config.sft
    microbatch, accumulation = split_batch(section.batch_size, section.microbatch_size, PartialState().num_processes)
    return SFTConfig(
        **trainer_arguments(config, section, folder / "checkpoints", ("sft",), microbatch, accumulation),
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        lr_scheduler_type="linear",
        warmup_steps=min(section.warmup_fraction, 0.999),  # TRL takes 1 or more as a number of steps
        max_length=None,  # the default would cut off the reflection, which is at the end
        packing=False,
        shuffle_dataset=False,  # the sampler shuffles, by data_seed
        save_steps=section.checkpoint_every,
        eval_strategy="steps" if validate else "no",
        eval_steps=section.checkpoint_every,
        prediction_loss_only=True,
        logging_steps=1,
        logging_first_step=True,
    )


def split_batch(batch: int, microbatch: int, processes: int) -> tuple[int, int]:
    """(examples in a forward pass of one process, forward passes in an optimiser step).

    Raises:
        ConfigError: if the processes cannot share ``batch`` examples evenly.
    """
    if batch % processes:
        raise ConfigError(f"sft.batch_size={batch} cannot be shared by {processes} processes: make it a multiple")
    share = batch // processes
    largest = largest_divisor(share, microbatch)
    return largest, share // largest


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint. The trainer writes its state last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was only partly written and is skipped", path)
            continue
        return path
    return None


def save_adapter(
    trainer: SFTTrainer, weights: dict[str, Tensor] | None, base: Any, revision: str | None, path: Path
) -> None:
    """Write the trained adapter in plain PEFT format, with the identity of its base.

    Args:
        weights: those of the whole model, if the trainer's own are in pieces.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"]
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # equal adapters make equal files
    model.save_pretrained(path, state_dict=weights)
    write_identity(path, base_identity(base, revision))


class StageLog(TrainerCallback):
    """Writes the trainer's log lines to ``metrics.jsonl``."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        metrics = {LOGGED[key]: value for key, value in (logs or {}).items() if key in LOGGED}
        if "loss" in metrics or "validation_loss" in metrics:
            self._work.log(state.global_step, **metrics)
        if "loss" in metrics:
            self._work.progress(state.global_step, state.max_steps, loss=metrics["loss"])


STAGE = Stage(
    name="sft",
    folder="sft",
    reads=("collect",),
    keys=(*MODEL_KEYS, "buffer", "sft"),
    not_deciding=("environment.name", "environment.prompts"),
    inputs=lambda config: training_inputs(config, "sft", own_loop=False),
    run=train_adapter,
    trains=True,
    packages=("datasets", "trl"),
)
