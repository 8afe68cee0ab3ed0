"""A generator of one's own samples in the place of the engine: for the policy, and for the stages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, GeneratorSection, RunConfig, Section, build, parse_config
from retro.models.adapters import SharedBase
from retro.models.running import Generated
from retro.prompts import load_prompts
from retro.retrospective.generator import EngineGenerator, Generator
from retro.retrospective.policy import Policy
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.types import Episode, ReflectionRequest, Sampling, Split, StopReason, Task, Trajectory

FAILED = Episode("e", Task("household", "1", Split.TRAIN), 0, Trajectory("look ."), 0.0, False, StopReason.FAILURE)


class Parrot:
    """Answers every prompt with one text, and remembers which adapter it was told to use."""

    class Options(Section):
        text: str = "look ."

    used: list[tuple[str | None, str]] = []

    def __init__(self, text: str, base: SharedBase) -> None:
        self._ids = base.tokenizer.encode(text, add_special_tokens=False)

    @classmethod
    def from_options(cls, options: Options, base: SharedBase) -> Self:
        return cls(options.text, base)

    def use(self, role: str | None, version: str) -> None:
        self.used.append((role, version))

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        return [[Generated(list(self._ids), [0.0] * len(self._ids), "stop")] * count for _ in prompts]


OWN = {"kind": f"{__name__}:Parrot", "options": {"text": "take mug 1"}}


def test_the_engine_is_the_kind_by_default(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    assert config.model.generator.kind == "engine"
    base = SharedBase.load(config.model, "cpu")
    generator = build(config.model.generator, base=base)
    assert isinstance(generator, EngineGenerator) and isinstance(generator, Generator)
    assert generator.sample([], 0, Sampling(), []) == []


def test_a_policy_tells_the_generator_which_adapter_and_reads_what_it_samples(
    make_config: Callable[..., RunConfig],
) -> None:
    config = make_config(model={"generator": OWN})
    base = SharedBase.load(config.model, "cpu")
    Parrot.used.clear()
    policy = Policy.on(
        base, None, load_prompts("household"), config.model, "sft", build(config.model.generator, base=base), "v1"
    )
    written = asyncio.run(policy.reflect(ReflectionRequest(FAILED, count=2)))
    assert [(reflection.text, reflection.source, reflection.index) for reflection in written] == [
        ("take mug 1", "sft", 0),
        ("take mug 1", "sft", 1),
    ]
    assert Parrot.used == [(None, "v1")]


def test_a_collection_samples_with_it_and_the_config_is_read_back(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(
        model={"generator": OWN},
        environment={"tasks": {"train": 2, "validation": 0, "test": 0}},
        collect={"attempts": 2, "group": 1, "controls": 0, "splits": ["train"]},
    )
    run_stage(COLLECT, config)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        written = {episode.reflection.text for episode in buffer.episodes() if episode.reflection}
    assert written == {"take mug 1"}
    assert (config.run_dir / "config.yaml").is_file()
    assert config.model.generator.model_dump() == OWN


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "engin"}, "did you mean 'engine'"),
        ({"kind": "engine", "text": "x"}, "text"),
        ({**OWN, "options": {"txet": "x"}}, "txet"),
    ],
)
def test_mistakes_are_named(section: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"model": {"generator": section}}, "test")


def test_a_bare_section_stands_for_the_engine() -> None:
    assert GeneratorSection().kind == "engine"
