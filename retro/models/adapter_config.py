"""``adapter_config.json``: the settings that decide what a LoRA adapter computes, checked.

PEFT acts on everything in the file: it imports the module that ``megatron_core`` names, decomposes the base's weights
if ``init_lora_weights`` says so, and runs names as regular expressions. So PEFT does not get the file, but a
configuration made of the settings that are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from retro.layout import ADAPTER_CONFIG
from retro.reading import UnreadableError, Word, cut, problems, read_json

MAX_RANK = 4096
_MAX_NAMES = 1_000
_FUSED = 2
"""PEFT doubles the rank if transformers has fused two projections of experts into one parameter."""
_LORA_A = ".lora_A.weight"
_PREFIX = "base_model.model."
_IGNORED = (
    *("peft_version", "revision", "inference_mode", "auto_mapping", "runtime_config"),  # not of the adapter
    *("megatron_core", "qalora_group_size"),  # read only if megatron_config or use_qalora is set, which is refused
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of how the training began
    *("exclude_modules", "layers_to_transform", "layers_pattern"),  # the weights say which modules have an adapter
)
"""Keys that are ignored. Any other unknown key must be empty or false."""

Name = Annotated[str, Field(max_length=500)]
Pattern = Annotated[str, Field(max_length=500, pattern=r"^(\^|\.\*\\\.)?[\w.-]+$")]
"""A name, perhaps after ``^`` or ``.*\\.``: PEFT uses it as a regular expression, and these backtrack little."""
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The settings that are read from an ``adapter_config.json``."""

    model_config = ConfigDict(extra="allow")
    peft_type: Literal["LORA"]
    task_type: str | None = None
    base_model_name_or_path: Word | None = None
    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Name | list[Name] | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=_MAX_NAMES)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=_MAX_NAMES)] = {}
    target_parameters: Annotated[list[Name], Field(max_length=_MAX_NAMES)] | None = None
    """Parameters of experts. PEFT adds them by itself for bases with experts."""
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal", "eva"] = True
    """How the adapter was initialised. PEFT's other values also change the base."""

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Read ``folder/adapter_config.json``.

        Raises:
            UnreadableError: naming the file, the key and what is wrong with it.
            OSError: if it cannot be opened.
        """
        path = folder / ADAPTER_CONFIG
        try:
            config = cls.model_validate(read_json(path))
        except ValidationError as error:
            raise UnreadableError(f"{path}: {problems(error)}") from None
        if config.task_type != "CAUSAL_LM":
            raise UnreadableError(
                f"{path}: an adapter for the task {cut(str(config.task_type))}, not CAUSAL_LM: a causal LM would "
                "silently drop its score head. Save the adapter as CAUSAL_LM and the head as "
                "head.safetensors (retro.models.heads)"
            )
        unknown = {key: value for key, value in (config.model_extra or {}).items() if key not in _IGNORED}
        for key, value in unknown.items():
            if value:
                raise UnreadableError(
                    f"{path}: {cut(key)}: {cut(str(value), 40)} changes what the adapter computes in a way that is not "
                    "supported; merge the adapter into its base, or train it without this setting"
                )
        return config

    def for_peft(self, weights: Mapping[str, Tensor]) -> LoraConfig:
        """PEFT's configuration for an adapter with these weights.

        Raises:
            ValueError: if its ranks are far above those of the weights, because PEFT allocates memory by its ranks.
        """
        modules = {_module(name): value for name, value in weights.items() if name.endswith(_LORA_A)}
        ranks = {value.shape[0] for value in modules.values() if value.dim() == 2}
        rank = max(self.r, *self.rank_pattern.values()) if self.rank_pattern else self.r
        if rank > _FUSED * max(ranks, default=0):
            raise ValueError(
                f"rank {rank} is too high for the weights' ranks: {', '.join(map(str, sorted(ranks))) or 'none'}"
            )
        whole = self.lora_alpha == math.floor(self.lora_alpha)  # vLLM reads an integer
        return LoraConfig(
            r=self.r,
            lora_alpha=int(self.lora_alpha) if whole else self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self._targets(sorted(modules)),
            target_parameters=self.target_parameters,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            fan_in_fan_out=self.fan_in_fan_out,
            base_model_name_or_path=self.base_model_name_or_path,
            task_type="CAUSAL_LM",
        )

    def _targets(self, adapted: list[str]) -> list[str]:
        """The modules to adapt: the file's list if there is one that selects all its names, else those with weights."""
        selected = any((self.model_extra or {}).get(key) for key in ("exclude_modules", "layers_to_transform"))
        if isinstance(self.target_modules, list) and len(self.target_modules) <= _MAX_NAMES and not selected:
            return self.target_modules
        return adapted


def _module(name: str) -> str:
    return name.removeprefix(_PREFIX).removesuffix(_LORA_A)
