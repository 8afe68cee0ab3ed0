"""What is the same wherever one of TRL's trainers runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro.config import OptimiserSection, PolicySection, RunConfig
from retro.models.loading import resolve_device
from retro.types import derive_seed

KEPT_CHECKPOINTS = 2
"""Of the trainer's own: the last may have been cut by a kill; the one before is whole."""


def trainer_arguments(
    config: RunConfig,
    section: OptimiserSection | PolicySection,
    folder: Path,
    names: Sequence[str],
    microbatch: int,
    accumulation: int,
) -> dict[str, Any]:
    """The arguments that all trainers are made with: every one whose default would decide something.

    Args:
        section: of the optimiser.
        folder: of the trainer's own checkpoints.
        names: of the draws: the stage, and the algorithm where it has several.
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
