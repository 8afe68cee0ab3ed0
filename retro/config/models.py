"""The sections about the retrospective model: its base, its adapters, and how it writes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from retro.config.base import PositiveFloat, PositiveInt, Section, Speed
from retro.config.kinds import KindSection, OneOf


class CheckpointSection(Section):
    """A transformers checkpoint, and how this process loads it."""

    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4"] = "none"
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the tokenizer's chat template besides the messages, such as ``{enable_thinking: false}``."""

    @property
    def checkpoint(self) -> str:
        """Its folder or hub name."""
        raise NotImplementedError

    @property
    def longest_tokens(self) -> int | None:
        """The longest sequence that it will process, if the section limits it."""
        return None


class LoraSection(Section):
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in ``sft`` and ``reward``; the algorithms of ``ppo`` train without it."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"


class ModelSection(CheckpointSection):
    """The retrospective model as an export records it, without kinds of somebody's own."""

    base: str = "data/quickstart/retrospective"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """``float16`` can write and score, but not train: small gradients would become zero."""
    rope_scaling: dict[str, Any] | None = None
    """Overrides the base's rotary scaling (longchat-7b-16k: ``{rope_type: linear, factor: 8.0}``)."""
    gradient_checkpointing: Annotated[bool, Speed] = False
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are shortened: observations are left out, the oldest first, and the text says so. The default is
    the base's context without ``max_new_tokens``, at most 2,048."""
    max_new_tokens: PositiveInt = 128
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    lora: LoraSection = LoraSection()

    @property
    def checkpoint(self) -> str:
        return self.base


class GeneratorSection(KindSection):
    """What samples the retrospective model's tokens."""

    point: ClassVar[str] = "generator"
    kind: str = "engine"


class TrainedModelSection(ModelSection):
    """The retrospective model: the base of all adapters, and how it is sampled."""

    generator: OneOf[GeneratorSection] = GeneratorSection()
