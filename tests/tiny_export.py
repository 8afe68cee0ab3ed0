"""An export on the tiny model, with a reward model that tells texts apart."""

from __future__ import annotations

from pathlib import Path

import torch

from retro.agent.records import BaseRecord, ExportRecord, RewardRecord
from retro.config import ModelSection
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.models.loading import base_identity


def write_export(folder: Path, model: Path, served_name: str) -> Path:
    """Write it into ``folder``, with random adapters on the base ``model``; returns ``folder``."""
    section = ModelSection(
        base=str(model), max_prompt_tokens=400, max_new_tokens=8, temperature=0.7, top_p=0.9, lora={"r": 2}
    )
    base = SharedBase.load(section, torch.device("cpu"))
    for role, place in (("policy", "adapter"), ("reward", "reward")):
        base.add_role(role, section.lora, seed=2)
        base.save_role(role, folder / place)
    save_head(ScalarHead(base.hidden_size, seed=1), folder / "reward" / "head.safetensors")
    record = ExportRecord(
        base=BaseRecord(name=section.base, identity=base_identity(section.base)),
        prompts="household",
        served_name=served_name,
        model=section,
        reward=RewardRecord(mean=0.0, std=1.0, loss="bradley_terry"),
    )
    (folder / "retro.json").write_text(record.model_dump_json())
    return folder
