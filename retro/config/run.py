"""The whole config of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from retro.config.base import NonNegativeInt, Section, Speed
from retro.config.evaluation import EvaluateSection, ExportSection
from retro.config.kinds import OneOf
from retro.config.models import TrainedModelSection
from retro.config.playing import (
    ActorSection,
    BufferSection,
    CollectSection,
    EnvironmentSection,
    MemorySection,
    RunnerSection,
)
from retro.config.training import PolicySection, RewardSection, SftSection
from retro.database_url import in_namespace
from retro.layout import RunFolder


class RunConfig(Section):
    """Everything a run needs, resolved."""

    name: Annotated[str, Speed] = "run"
    runs: Annotated[str, Speed] = "runs"
    """The folder of run folders."""
    seed: NonNegativeInt = 0
    device: Annotated[str, Speed] = "auto"
    """``auto``: CUDA where there is one."""
    trackers: Annotated[list[Literal["wandb", "tensorboard"]], Speed] = []
    environment: EnvironmentSection = EnvironmentSection()
    actor: OneOf[ActorSection] = ActorSection()
    memory: OneOf[MemorySection] = MemorySection()
    runner: Annotated[OneOf[RunnerSection], Speed] = RunnerSection()
    model: TrainedModelSection = Field(default_factory=TrainedModelSection)
    buffer: BufferSection = BufferSection()
    collect: CollectSection = CollectSection()
    sft: SftSection = SftSection()
    reward: RewardSection = RewardSection()
    ppo: OneOf[PolicySection] = PolicySection()
    export: ExportSection = ExportSection()
    evaluate: EvaluateSection = EvaluateSection()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def actor_ledger(self) -> Path:
        """What the actor has cost so far: JSON lines that add up."""
        return RunFolder(self.run_dir).actor_usage

    @property
    def buffer_url(self) -> str:
        """The URL of the run's own buffer: in PostgreSQL its namespace is the run's name, unless the URL names one."""
        if self.buffer.url is None:
            return f"sqlite:///{RunFolder(self.run_dir).buffer}"
        return in_namespace(self.buffer.url, self.name)

    def dump(self) -> str:
        """YAML that :func:`load_config` reads back to an equal config."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text
