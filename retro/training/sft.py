"""Stage ``sft``: imitate the reflections that helped (Retroformer, stage 1).

Reads the buffer's reflections rated above ``sft.threshold`` on training tasks; TRL's ``SFTTrainer`` fits a LoRA adapter
to the reflection's tokens alone; writes ``sft/adapter`` in plain PEFT format. The loss on the validation tasks' good
reflections is logged beside.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import RatedReflection, rated_reflections, sft_examples
from retro.config import ConfigError, RunConfig
from retro.layout import ADAPTER
from retro.models.adapter_files import write_identity
from retro.models.adapters import SharedBase, lora_config
from retro.models.exactness import check_base
from retro.models.loading import base_identity, load_base, load_tokenizer, resolve_device
from retro.models.sharding import launched_pieces
from retro.retrospective.encoding import Encoder
from retro.stage import NothingToLearnError, Stage, Work
from retro.training.examples import MODEL_KEYS, encoder_of_run, training_inputs, without_too_long
from retro.training.trl import trainer_arguments
from retro.types import Split

if TYPE_CHECKING:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that has no loss."""
LOGGED = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "validation_token_accuracy",
}
"""What goes to ``metrics.jsonl``: the trainer's name → ours."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a reflection as one sequence; the loss is on the reflection's tokens."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def sft_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what is read: the buffer, the base model, the prompts.

    Raises:
        ConfigError: if the launch is one that this stage does not run under.
    """
    launched_pieces("sft", config.model, own_loop=False)
    return training_inputs(config)


def train_adapter(config: RunConfig, work: Work) -> None:
    """Train the adapter.

    Raises:
        NothingToLearnError: if no training reflection is rated above the threshold.
        ConfigError: if the batch size cannot be divided over the processes.
    """
    from transformers import set_seed
    from trl.trainer.sft_trainer import SFTTrainer  # here: planning a run imports this module, and TRL takes seconds

    tokenizer = load_tokenizer(config.model)
    encoder = encoder_of_run(tokenizer, config)
    train, validation = read_examples(config, encoder)
    arguments = sft_arguments(config, work.folder, bool(validation))  # before the base: DeepSpeed loads by them
    pieces = launched_pieces("sft", config.model, own_loop=False)
    base = load_base(config.model, "cpu" if pieces == "fsdp2" else resolve_device(config.device))
    if pieces is None:  # of a base in pieces no process holds enough to test it
        check_base(SharedBase(base, tokenizer, config.model.revision), config.model.lora)
    base.config.use_cache = False
    set_seed(arguments.seed)  # before TRL 1.16, the trainer draws the adapter's first weights before it seeds
    trainer = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation) if validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(config.model.lora),
        callbacks=[StageLog(work)],
    )
    trainer.remove_callback(PrinterCallback)  # its lines are in metrics.jsonl
    require_all_examples(trainer, train)
    work.open_trackers(trainer.accelerator)
    checkpoint = last_whole_checkpoint(Path(str(arguments.output_dir))) if work.resumed else None
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    work.cut_metrics(step)
    trainer.accelerator.wait_for_everyone()
    logger.info("sft: %d reflections, %d tokens of them", len(train), sum(item.trained_tokens for item in train))
    # A checkpoint holds pickles (optimiser, RNG). They are read back from this stage's own folder alone, never from
    # what a user was sent.
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    adapter = work.output("adapter", work.folder / ADAPTER)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if pieces else None  # by all processes
    if work.main:
        save_adapter(trainer, weights, base, config.model.revision, adapter)


def read_examples(config: RunConfig, encoder: Encoder) -> tuple[list[Example], list[Example]]:
    """The examples of the training tasks and of the validation tasks."""
    section, environments = config.sft, config.buffer.environments
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        train = sft_examples(buffer, section.rating, section.threshold, (Split.TRAIN,), environments)
        validation = sft_examples(buffer, section.rating, section.threshold, (Split.VALIDATION,), environments)
        if not train:
            rated = rated_reflections(buffer, section.rating, (Split.TRAIN,), environments)
            best = f"the best is {max(item.rating for item in rated):.3f}" if rated else "there is none to rate"
            raise NothingToLearnError(
                f"no reflection on a training task is rated above sft.threshold = {section.threshold} by "
                f"{section.rating} (of {len(rated)} in {buffer}, {best}): collect more tasks or larger "
                "groups, or lower sft.threshold"
            )
    fitting = without_too_long(train, encoder, "reflections on train tasks")
    if not fitting:
        raise NothingToLearnError(f"sft: no prompt of {len(train)} reflections fits model.max_prompt_tokens: raise it")
    validation = without_too_long(validation, encoder, "reflections on validation tasks")
    return [encode(encoder, item) for item in fitting], [encode(encoder, item) for item in validation]


def encode(encoder: Encoder, item: RatedReflection) -> Example:
    """One example; only the reflection's tokens, its end among them, are learnt."""
    prompt, response = encoder.prompt(item.context.episode), encoder.response(item.reflection)
    return Example(prompt + response, [IGNORED] * len(prompt) + response)


def to_dataset(examples: list[Example]) -> Dataset:
    """Already tokenised, with labels: TRL takes it as it is."""
    from datasets import Dataset

    return Dataset.from_dict(
        {"input_ids": [item.input_ids for item in examples], "labels": [item.labels for item in examples]}
    )


def sft_arguments(config: RunConfig, folder: Path, validate: bool) -> SFTConfig:
    """What the trainer is made with."""
    from accelerate import PartialState
    from trl.trainer.sft_config import SFTConfig

    section = config.sft
    microbatch, accumulation = split_batch(section.batch_size, section.microbatch_size, PartialState().num_processes)
    return SFTConfig(
        **trainer_arguments(config, section, folder / "checkpoints", ("sft",), microbatch, accumulation),
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        lr_scheduler_type="linear",
        warmup_steps=min(section.warmup_fraction, 0.999),  # from 1 on it would be a number of steps
        max_length=None,  # the default would cut the reflection off, which stands at the end
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
        ConfigError: if ``batch`` examples cannot be shared evenly.
    """
    if batch % processes:
        raise ConfigError(f"sft.batch_size={batch} cannot be shared by {processes} processes: make it a multiple")
    share = batch // processes
    largest = max(size for size in range(1, min(microbatch, share) + 1) if share % size == 0)
    return largest, share // largest


def require_all_examples(trainer: SFTTrainer, examples: list[Example]) -> None:
    """Refuse to train if the trainer's preparation has lost an example, or a token that is to be learnt."""
    kept = cast("Dataset", trainer.train_dataset)
    tokens = sum(label != IGNORED for labels in kept["labels"] for label in labels)
    wanted = sum(item.trained_tokens for item in examples)
    if len(kept) != len(examples) or tokens != wanted:
        raise RuntimeError(
            f"the trainer kept {len(kept)} of {len(examples)} examples and {tokens} of {wanted} trained tokens: "
            "this version of TRL prepares data in another way than this retro expects; install the constraints' version"
        )


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end: the trainer's state is its last file."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was cut while it was written and is passed over", path)
            continue
        return path
    return None


def save_adapter(
    trainer: SFTTrainer, weights: dict[str, Tensor] | None, base: Any, revision: str | None, path: Path
) -> None:
    """The trained adapter in plain PEFT format, with the identity of its base.

    Args:
        weights: the whole model's, where the trainer's own are in pieces.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config["default"]
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set has no order: equal adapters, equal files
    model.save_pretrained(path, state_dict=weights)
    write_identity(path, base_identity(base, revision))


class StageLog(TrainerCallback):
    """Passes the trainer's log lines on to ``metrics.jsonl``."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {LOGGED[key]: value for key, value in (logs or {}).items() if key in LOGGED}
        if "loss" in metrics or "validation_loss" in metrics:
            self._work.log(state.global_step, **metrics)
        if "loss" in metrics and state.global_step % max(1, state.max_steps // 10) == 0:
            logger.info("sft: step %d of %d, loss %.4f", state.global_step, state.max_steps, metrics["loss"])


STAGE = Stage(
    name="sft",
    folder="sft",
    reads=("collect",),
    keys=(*MODEL_KEYS, "buffer", "sft"),
    not_deciding=("environment.name", "environment.prompts"),
    inputs=sft_inputs,
    run=train_adapter,
    trains=True,
)
