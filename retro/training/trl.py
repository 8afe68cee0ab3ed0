"""What all stages with a trainer of TRL share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.config import OptimiserSection, PolicySection, RunConfig
from retro.models.loading import resolve_device
from retro.types import derive_seed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

KEPT_CHECKPOINTS = 2
"""The number of the trainer's checkpoints that are kept. A kill may cut the last one; the one before is complete."""


def trainer_arguments(
    config: RunConfig,
    section: OptimiserSection | PolicySection,
    folder: Path,
    names: Sequence[str],
    microbatch: int,
    accumulation: int,
) -> dict[str, Any]:
    """The arguments that all trainers share; none whose default matters is left out.

    Args:
        section: the optimiser's options.
        folder: where the trainer writes its checkpoints.
        names: what seeds are derived from: the stage, and the algorithm if the stage has several.
        microbatch: rows in one forward pass of one process.
        accumulation: forward passes in one optimiser step.
    """
    device = resolve_device(config.device)
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": microbatch,
        "per_device_eval_batch_size": microbatch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": section.learning_rate,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": "adamw_torch",
        "adam_beta1": section.adam.beta1,
        "adam_beta2": section.adam.beta2,
        "adam_epsilon": section.adam.epsilon,
        "bf16": config.model.dtype == "bfloat16" and device.type == "cuda",
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "seed": derive_seed(config.seed, *names) % 2**32,
        "data_seed": derive_seed(config.seed, names[0], "order") % 2**32,
        "save_strategy": "steps",
        "save_total_limit": KEPT_CHECKPOINTS,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,
    }


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit`` (at least 1)."""
    return max(size for size in range(1, max(1, min(limit, number)) + 1) if number % size == 0)


def require_kept(trainer: Any, examples: Sequence[DataclassInstance]) -> None:
    """Refuse to train if the trainer's preparation has changed a token of its examples.

    Raises:
        RuntimeError: naming the number of examples and the remedy.
    """
    columns = list(asdict(examples[0]))
    kept = trainer.train_dataset
    if not set(columns) <= set(kept.column_names) or any(
        kept[column][:] != [getattr(example, column) for example in examples] for column in columns
    ):
        raise RuntimeError(
            f"the trainer has other data than the {len(examples)} examples that it was given: this version of TRL "
            "prepares data differently from what retro expects; install the constraints' version"
        )
