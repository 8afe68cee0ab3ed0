"""One base model in memory with several roles: LoRA adapters that are switched in one place only.

PEFT's ``set_adapter`` changes ``requires_grad``. A switch between a forward pass and its backward pass would silently
leave the adapter without gradients, or (with gradient checkpointing) with those of another adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.config import LoraSection, ModelSection
from retro.models.adapter_files import (
    WEIGHTS,
    AdapterError,
    AdapterMismatchError,
    read_adapter,
    read_identity,
    write_identity,
)
from retro.models.backbone import decoder_of
from retro.models.exactness import check_base
from retro.models.limits import context_tokens
from retro.models.loading import base_identity, load_base, load_tokenizer, same_base
from retro.models.sharding import Lockstep, shard_decoder
from retro.models.tensors import write_tensors


class RoleError(RuntimeError):
    """Roles are used in a way that would compute something else than intended."""


class SharedBase:
    """A base model, its tokenizer, and the roles on it.

    Outside of :meth:`role` the adapters are off. A role stays trainable, or stays frozen.
    """

    casts_inputs = False
    """Whether PEFT casts an adapted layer's input to the adapter's dtype, which calls past ``hidden_states`` need."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str | None = None) -> None:
        model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.revision = revision
        self._base = model
        self._peft: PeftModel | None = None
        self._trainable: dict[str, bool] = {}
        self._active: tuple[str | None, bool] | None = None
        self._lockstep: Lockstep | None = None
        decoder_of(model).register_forward_hook(self._watch)

    @classmethod
    def load(cls, section: ModelSection, device: torch.device | str = "auto") -> SharedBase:
        """Load a section's base, and test that it is exact in all ways of using it here.

        Raises:
            ConfigError: if it cannot be loaded.
            UnsupportedModelError: if it is not exact (see :func:`retro.models.exactness.check_base`).
        """
        model = load_base(section, device)
        if section.gradient_checkpointing:  # takes effect in training mode only
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tokenizer = load_tokenizer(section)
        base = cls(model, tokenizer, section.revision)
        check_base(base, section.lora)
        return base

    @property
    def model(self) -> PreTrainedModel:
        """The model to call: the base, or the PEFT wrapper around it once there is a role."""
        return self._base if self._peft is None else self._peft

    @property
    def device(self) -> torch.device:
        return self._base.device

    @property
    def context(self) -> int | None:
        """The longest sequence (tokens) that the base takes; None if it names no limit."""
        return context_tokens(self._base.config)

    @property
    def hidden_size(self) -> int:
        return int(self._base.config.get_text_config().hidden_size)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self._trainable)

    @cached_property
    def identity(self) -> str:
        """See :func:`retro.models.loading.base_identity`."""
        return base_identity(self._base, self.revision)

    def add_role(self, role: str, lora: LoraSection, seed: int) -> None:
        """Add a new trainable adapter, which starts without an effect (B = 0; A is drawn from ``seed``)."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._add(role, lora_config(lora), trainable=True)

    def load_role(self, role: str, path: Path, trainable: bool) -> None:
        """Load a PEFT LoRA folder as a role; a role of that name is replaced.

        Raises:
            AdapterMismatchError: if it was trained on another base, naming both.
            AdapterError: if the folder does not hold a causal-LM LoRA in safetensors.
        """
        config, weights = read_adapter(path)
        identity = read_identity(path)
        trained_on = identity or config.base_model_name_or_path
        if identity is not None and not same_base(identity, self.identity):
            rotary = getattr(self._base.config.get_text_config(), "rope_parameters", None) or {}
            remedy = "set model.base to its own base"
            if rotary.get("rope_type") == "longrope":
                remedy += ", or set model.max_prompt_tokens and model.max_new_tokens as in its training"
            raise AdapterMismatchError(f"{path} was trained on the base {trained_on}, not on {self.identity}: {remedy}")
        try:
            self._add(role, config, trainable)
            _fill(self._require(role), role, weights)
        except (ValueError, RuntimeError) as error:
            self._remove(role)
            raise AdapterMismatchError(
                f"{path} was trained on the base {trained_on} and does not fit {self.identity}: {error}"
            ) from error

    def remove_role(self, role: str) -> None:
        """Take a role off the base."""
        self._require(role)
        self._remove(role)

    def save_role(self, role: str, path: Path) -> None:
        """Write a role as a plain PEFT folder, which ``PeftModel.from_pretrained`` loads, with its base's identity."""
        config = copy.deepcopy(self._require(role).peft_config[role])
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # equal adapters make equal files
        path.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(path))
        weights = _weights(self._require(role), role)
        write_tensors(dict(sorted(weights.items())), path / WEIGHTS, {"format": "pt"})
        write_identity(path, self.identity)

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's parameters by name, without the role in the names."""
        return {
            name.replace(f".{role}.", "."): value
            for name, value in self._require(role).named_parameters()
            if f".{role}." in name
        }

    def shard(self, device: torch.device) -> None:
        """Cut the layers in pieces on ``device``, one for each process (:mod:`retro.models.sharding`).

        Add all roles before. From then on, all processes must enter the same roles in the same order.
        """
        adapters = {role: list(self.role_parameters(role).values()) for role in self.roles}
        self._lockstep = shard_decoder(self._base, adapters, device)

    def finish_passes(self) -> None:
        """Wait until no other process has a pass left to make, and gather the layers with them until then.

        Call it inside a role before any collective; leaving a role calls it, too. It does nothing for a whole base.
        """
        if self._lockstep is not None:
            self._lockstep.finish()

    @contextmanager
    def role(self, name: str | None, train: bool = False) -> Iterator[nn.Module]:
        """Switch to a role; ``None`` is the bare base. This is the only place where adapters are switched.

        Without ``train``, gradients are off and the model is in evaluation mode. (Not in inference mode: what is
        computed here may be part of a loss later.) With ``train``, make the backward pass inside, too.

        Raises:
            RoleError: inside another role, or to train a frozen role. Also from a backward pass in another role than
                that of its forward pass.
        """
        if self._active is not None:
            raise RoleError(f"role {name!r} asked for inside role {self._active[0]!r}: leave that one first")
        if train and not (name and self._trainable.get(name)):
            raise RoleError(f"role {name!r} is frozen: load it with trainable=True to train it")
        if name is not None:
            self._require(name)
        self._switch(name)
        self._active = (name, train)
        self.model.train(train)
        try:
            with nullcontext() if train else torch.no_grad():
                yield self.model
            self.finish_passes()
        finally:
            self.model.train(False)
            self._active = None
            self._switch(None)

    def _watch(self, module: nn.Module, args: Any, output: Any) -> None:
        """After each forward pass in training, require that its backward pass has the same active role."""
        made_in = self._active
        if made_in is None or not made_in[1]:
            return

        def check(gradient: Tensor) -> None:
            if self._active != made_in:
                now = "no role is" if self._active is None else f"role {self._active[0]!r} is"
                raise RoleError(
                    f"backward of a forward pass in role {made_in[0]!r} while {now} active: "
                    f"call backward inside the same `with base.role({made_in[0]!r}, train=True)`"
                )

        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(check)

    def _switch(self, role: str | None) -> None:
        if self._peft is None:
            return
        if role is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(role)
        for name, trainable in self._trainable.items():  # PEFT has just changed requires_grad
            for parameter in self.role_parameters(name).values():
                parameter.requires_grad_(trainable)

    def _add(self, role: str, config: PeftConfig, trainable: bool) -> None:
        if self._active is not None:
            raise RoleError(f"role {role!r} added inside role {self._active[0]!r}: leave that one first")
        if self._lockstep is not None:
            raise RoleError(f"role {role!r} added to a base in pieces: add all roles before it is cut")
        self._remove(role)
        config.inference_mode = False
        config.base_model_name_or_path = self._base.config.name_or_path
        if self._peft is None:
            self._peft = get_peft_model(self._base, config, adapter_name=role)
        else:
            self._peft.add_adapter(role, config)
        self._trainable[role] = trainable
        for module in self._peft.modules():
            if isinstance(module, BaseTunerLayer):  # hidden_states sets the dtype in which adapters compute
                module.cast_input_dtype_enabled = self.casts_inputs
        self._peft.train(False)
        self._switch(None)

    def _remove(self, role: str) -> None:
        if self._peft is None:
            return
        self._trainable.pop(role, None)
        if role in self._peft.peft_config:
            self._peft.delete_adapter(role)
        if not self._peft.peft_config:
            self._base = self._peft.unload()
            self._peft = None

    def _require(self, role: str) -> PeftModel:
        if self._peft is None or role not in self._peft.peft_config:
            raise RoleError(f"there is no role {role!r}; there are: {', '.join(self.roles) or 'none'}")
        return self._peft


def _weights(peft: PeftModel, role: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = get_peft_model_state_dict(peft, adapter_name=role, save_embedding_layers=False)
    return weights


def _fill(peft: PeftModel, role: str, weights: dict[str, Tensor]) -> None:
    """Set an adapter's weights.

    Raises:
        ValueError: if their names or shapes are others than the adapter's.
    """
    expected = {name: tuple(value.shape) for name, value in _weights(peft, role).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        example = wrong[0]
        raise ValueError(
            f"{len(wrong)} weights differ, {example} is {found.get(example, 'missing')} in the adapter and "
            f"{expected.get(example, 'missing')} on the base"
        )
    set_peft_model_state_dict(peft, weights, adapter_name=role)


def with_adapter(model: PreTrainedModel, path: str | Path) -> PreTrainedModel:
    """``model`` with a PEFT LoRA folder merged into its weights, or beside them if they have 4 bits.

    Raises:
        AdapterError: if the folder does not hold a causal-LM LoRA in safetensors that fits the model.
    """
    config, weights = read_adapter(Path(path))
    try:
        adapted = get_peft_model(model, config, adapter_name="adapter")
        _fill(adapted, "adapter", weights)
    except (ValueError, RuntimeError) as error:
        raise AdapterError(f"{path} does not fit the model {model.config.name_or_path!r}: {error}") from None
    quantised = getattr(model, "is_loaded_in_4bit", False)
    whole: PreTrainedModel = adapted.get_base_model() if quantised else adapted.merge_and_unload()
    whole.requires_grad_(False)
    whole.train(False)
    return whole


def lora_config(section: LoraSection) -> LoraConfig:
    """PEFT's configuration of a section for a causal LM."""
    whole = section.alpha == int(section.alpha)  # vLLM reads an integer
    return LoraConfig(
        r=section.r,
        lora_alpha=int(section.alpha) if whole else section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )
