"""Loading base models and tokenizers: dtype, 4-bit quantisation, rotary scaling, device; only from safetensors."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from retro.config import CheckpointSection, ConfigError, ModelSection
from retro.models.limits import context_tokens, prompt_tokens
from retro.models.rotary import fix_longrope, scale_rotary
from retro.models.text import unread_template_kwargs
from retro.reading import cut

_MAX_LAYERS = 1_000
"""A model is built by this number, whatever its weights hold."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is CUDA if there is a GPU, else the CPU.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def load_tokenizer(section: CheckpointSection) -> PreTrainedTokenizerBase:
    """The tokenizer of a section's model. If it has no padding token, the end token pads (padding is never read).

    Raises:
        ConfigError: if it cannot be loaded, or its chat template does not read one of ``chat_template_kwargs``.
    """
    name, revision = section.checkpoint, section.revision
    with _naming(f"the tokenizer of {name!r}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=section.trust_remote_code
        )
        if not isinstance(tokenizer.model_max_length, (int, float)):
            raise ConfigError("tokenizer_config.json: model_max_length is not a number")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    unread = unread_template_kwargs(tokenizer, section.chat_template_kwargs)
    if unread:
        key = "model" if isinstance(section, ModelSection) else "actor"
        raise ConfigError(
            f"{key}.chat_template_kwargs: the chat template of {name!r} does not mention {', '.join(unread)}"
            if tokenizer.chat_template
            else f"{key}.chat_template_kwargs: the tokenizer of {name!r} has no chat template"
        )
    return tokenizer


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with a begin or end token for which the model has no embedding.

    Raises:
        ConfigError: naming the token.
    """
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    for token, number in ((tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)):
        if number is not None and number >= rows:
            raise ConfigError(
                f"the tokenizer of {model.config.name_or_path!r}: its token {cut(str(token), 40)!r} has the id "
                f"{number}, and the model has {rows} tokens: use the tokenizer that belongs to it"
            )


def load_base(section: CheckpointSection, device: torch.device | str = "auto") -> PreTrainedModel:
    """Load a causal LM on ``device``, frozen and in evaluation mode.

    ``nf4`` keeps the linear layers in 4 bits (bitsandbytes; double quantisation) and computes in the section's dtype.
    The base's own dropout is switched off: a frozen base has nothing to regularise, and two passes of one policy must
    agree. Only the end tokens of ``generation_config.json`` are kept, since the section says how to sample.

    Raises:
        ConfigError: if the model cannot be loaded: there is no such folder or hub name, it has no safetensors,
            bitsandbytes is missing, or it does not take the rotary scaling.
    """
    device = resolve_device(device) if isinstance(device, str) else device
    name, revision = section.checkpoint, section.revision
    dtype: torch.dtype = getattr(torch, section.dtype)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if section.quantization == "nf4":
        options |= {"quantization_config": _nf4(dtype), "device_map": {"": device}}
    config = load_model_config(section)
    _refuse_adapter(name, revision)
    with _naming(f"model {name!r}"):
        model = _from_pretrained(
            name, config=config, revision=revision, trust_remote_code=section.trust_remote_code, **options
        )
    if section.quantization == "nf4":
        _keep_differentiable(model)
    else:
        model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    _silence_dropout(model)
    own = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig(eos_token_id=None if own is None else own.eos_token_id)
    model.requires_grad_(False)
    model.train(False)
    return model


def load_model_config(section: CheckpointSection) -> PreTrainedConfig:
    """The model's configuration with the section's rotary scaling (:mod:`retro.models.rotary`).

    Raises:
        ConfigError: if there is none, it does not take the scaling, or the prompts and answers of a retrospective model
            together exceed its context.
    """
    config = _scaled_config(section)
    needed = section.longest_tokens
    if isinstance(section, ModelSection):
        needed = prompt_tokens(section, context_tokens(config)) + section.max_new_tokens
    fix_longrope(config, section.checkpoint, needed)
    return config


def base_context(section: ModelSection) -> int | None:
    """The longest sequence (tokens) that a section's base takes; None if it names no limit.

    Raises:
        ConfigError: if there is no such base, or it does not take the section's rotary scaling.
    """
    return context_tokens(_scaled_config(section))


def local_context(section: ModelSection) -> int | None:
    """:func:`base_context` of a base in a local folder; None for any other base."""
    return base_context(section) if (Path(section.base) / "config.json").is_file() else None


def _scaled_config(section: CheckpointSection) -> PreTrainedConfig:
    name, revision = section.checkpoint, section.revision
    needed = " (give a folder with config.json and model.safetensors, or a hub name)"
    with _naming(f"model {name!r}", needed):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=section.trust_remote_code
        )
        layers = config.get_text_config().num_hidden_layers
    if not 0 < layers <= _MAX_LAYERS:
        raise ConfigError(f"model {name!r}: its config.json says {layers:,} layers; at most {_MAX_LAYERS:,} are built")
    scaling = section.rope_scaling if isinstance(section, ModelSection) else None
    if scaling is not None:
        scale_rotary(config, name, scaling)
    return config


def require_trainable(section: ModelSection) -> None:
    """Refuse to train in float16, where gradients below 6e-8, its smallest positive number, would become zero.

    Raises:
        ConfigError: naming the remedy.
    """
    if section.dtype == "float16":
        raise ConfigError(
            "model.dtype=float16 does not train: gradients below 6e-8 would become zero. Set model.dtype=bfloat16, or "
            "float32 on a device without it"
        )


def base_identity(
    model: PreTrainedModel | str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> str:
    """``name#digest`` of a base model, by its kind, its rotary parameters and the shapes of its weights.

    With the ``revision`` of a hub name it is ``name@revision#digest``. Quantisation and dtype do not matter: an adapter
    that was trained on a 4-bit base fits the same base in 16 bits.

    Raises:
        ConfigError: if a name's ``config.json`` cannot be loaded, or needs code that is not trusted.
    """
    if isinstance(model, (str, Path)):
        name = str(model)
        with _naming(f"model {name!r}"), torch.device("meta"):
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    else:
        name, config = str(model.config.name_or_path), copy.deepcopy(model.config)
        with torch.device("meta"):
            empty = type(model)(config)
    shapes = sorted((key, list(value.shape)) for key, value in empty.named_parameters())
    described = json.dumps([config.model_type, getattr(config, "rope_parameters", None), shapes], sort_keys=True)
    named = f"{name}@{revision}" if revision else name
    return f"{named}#{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def in_hub_cache(name: str, revision: str | None = None) -> bool:
    """Whether the ``config.json`` of a hub name is already on this machine."""
    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:  # not a hub name, which loading will report
        return False


def same_base(left: str, right: str) -> bool:
    """Whether two identities name the same architecture, wherever its files are."""
    return left.rpartition("#")[2] == right.rpartition("#")[2]


@contextmanager
def _naming(what: str, advice: str = "") -> Iterator[None]:
    """Turn the errors of transformers and tokenizers, which have many types, into ``ConfigError`` with a name."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # Rust's: not an Exception, and its class has no module
        if not isinstance(error, Exception) and not panic:
            raise
        reason = cut(_in_a_line(error))
        if "trust_remote_code" in str(error):
            reason += "; set trust_remote_code (--trust-remote-code) if that code may run with all your rights"
        raise ConfigError(f"{what} cannot be loaded: {reason}{advice}") from error


def _in_a_line(error: BaseException) -> str:
    """The first line of an error; the others give advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _refuse_adapter(name: str, revision: str | None) -> None:
    """Refuse a folder with an adapter, because transformers would load the base that the adapter names."""
    with _naming(f"model {name!r}"):
        found = find_adapter_config_file(name, revision=revision)
    if found is not None:
        raise ConfigError(f"model {name!r} is an adapter, or holds one ({found}): name a base without it")


def _from_pretrained(name: str, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Load a model with SDPA, or with its own attention if that has a cap or a sink, which SDPA does not have.

    transformers refuses SDPA for such models; older versions (5.10) use it for Gemma 2, without the cap.
    """
    attention = "sdpa" if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "eager"
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, config=config, attn_implementation=attention, **options
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model = AutoModelForCausalLM.from_pretrained(name, config=config, attn_implementation="eager", **options)
    return model


def _silence_dropout(model: PreTrainedModel) -> None:
    """Set every dropout of the base to 0: modules, and the numbers that ``F.dropout`` is called with.

    These numbers have many names (``dropout``, ``resid_pdrop``, ``layerdrop``, ``residual_dropout``) in modules and in
    their configurations. Noise on a router's input (``jitter``) is also set to 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    holders = [*model.modules(), *(module.config for module in model.modules() if hasattr(module, "config"))]
    for holder in holders:
        for key, value in list(vars(holder).items()):
            if isinstance(value, float) and ("drop" in key or "jitter" in key):
                setattr(holder, key, 0.0)


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Keep 4-bit weights in a format that gradients pass through.

    On a CPU with AVX512-BF16, bitsandbytes repacks a layer's weights at its first evaluation pass for a kernel without
    a backward pass. The gradients of adapters below would then silently lack this layer's part.
    """
    for module in model.modules():
        attributes = vars(module)
        if "support_avx512bf16_for_cpu" in attributes:
            attributes["support_avx512bf16_for_cpu"] = False


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("quantization: nf4 needs bitsandbytes: pip install 'retro[quantization]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
