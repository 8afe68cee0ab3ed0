"""Passes of the product's own update on a few random decoder layers, counted in bytes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.memory_tracking import LiveBytes, saved_bytes
from retro.config import LoraSection, ModelSection
from retro.models.adapters import SharedBase
from retro.models.backbone import plain_model
from retro.models.cache import Block, TokenShape
from retro.models.heads import ScalarHead
from retro.models.packing import PackedBatch, pack, response_outputs

TOKENIZER = Path("data/quickstart/retrospective")
ROLE = "policy"


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Llama kind."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    """Of the whole model: what the sums are for."""
    vocabulary: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def config(self) -> LlamaConfig:
        """Of one layer: the measured ones are copies of it."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=1,
            num_attention_heads=self.heads,
            max_position_embeddings=2**15,
            dtype="bfloat16",
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward and backward pass held beside weights, adapters and inputs, bytes."""

    layers: int
    tokens: int
    held: int
    """After the forward pass: what the backward pass waits for."""
    peak: int
    scratch: int
    """The most that weights made of their 4 bits took; not in ``peak``."""
    saved: dict[str, int]
    """What the forward pass saved for the backward pass, by dtype (a part of ``held``)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def written(shape: Shape, seed: int) -> Iterator[Path]:
    """A folder with one random decoder layer between an embedding and an output layer, in bfloat16."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
        del model
        yield Path(folder)


def load(folder: Path, quantization: Literal["none", "nf4"], layers: int) -> SharedBase:
    """The product's base with ``layers`` copies of its one layer; :func:`use_layers` says how many of them run."""
    section = ModelSection(base=str(folder), dtype="bfloat16", quantization=quantization, gradient_checkpointing=True)
    base = SharedBase.load(section, "cpu")
    decoder = base.model.get_decoder()
    stack, config = decoder.layers, decoder.config
    stack.extend(copy.deepcopy(stack[0], {id(config): config}) for _ in range(layers - 1))
    return base


def use_layers(base: SharedBase, layers: int, checkpointing: bool) -> None:
    plain = plain_model(base.model)
    plain.config.num_hidden_layers = layers
    if checkpointing:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        plain.gradient_checkpointing_disable()


def made_up(prompt: int, responses: int, length: int) -> PackedBatch:
    """A prompt of so many tokens and so many responses of so many to it."""
    return pack([[7] * prompt], [[[9] * length] * responses])


def measure_pass(base: SharedBase, layers: int, packed: PackedBatch) -> Pass:
    """PPO's forward and backward pass; its gradients are checked and dropped."""
    head = ScalarHead(base.hidden_size)
    parameters = base.role_parameters(ROLE)
    for parameter in (*parameters.values(), *head.parameters()):
        parameter.grad = torch.zeros_like(parameter)  # there before, as in a later pass of a step: a term of its own
    packed.inputs(flex=False, dtype=torch.bfloat16)  # made once for all epochs: :func:`mask_bytes` counts it
    live = LiveBytes()
    with base.role(ROLE, train=True) as model, live:
        with saved_bytes(live) as saved:
            outputs = response_outputs(model, packed, lambda hidden: head(hidden.detach()))
            assert outputs.values is not None
            loss = outputs.log_probs.sum() + outputs.values.sum()
        held = live.live
        loss.backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        used = layers > int(name.partition(".layers.")[2].partition(".")[0])
        if bool(parameter.grad.any()) != used or not parameter.grad.isfinite().all():
            raise RuntimeError(f"{name}: its gradient is {'zero' if used else 'not zero'} or not finite")
        parameter.grad = None
    return Pass(layers, packed.input_ids.numel(), held, live.peak, live.scratch_peak, dict(saved))


def mask_bytes(prompt: int, responses: int, length: int, rows: int) -> int:
    """Of the masks of so many equal trees on the plain way, which stay from the first pass to the last epoch."""
    packed = pack([[7] * prompt] * rows, [[[9] * length] * responses] * rows)
    return sum(
        value.nbytes
        for value in packed.inputs(flex=False, dtype=torch.bfloat16).values()
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16
    )


def measure_head(base: SharedBase, tokens: int) -> int:
    """Peak bytes of log-probabilities, entropies and their gradients for so many response tokens, no layer below."""
    plain = plain_model(base.model)
    use_layers(base, 0, checkpointing=False)
    plain.enable_input_require_grads()
    try:
        live = LiveBytes()
        packed = made_up(1, tokens // 128, 128)
        with base.role(ROLE, train=True) as model, live:
            response_outputs(model, packed).log_probs.sum().backward()
    finally:
        plain.disable_input_require_grads()
    return live.peak


def stored_bytes(modules: Sequence[nn.Module]) -> int:
    """Bytes of parameters, buffers and 4-bit scales, a shared storage once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(_storage, _tensors(modules))}
    return sum(storages.values())


def parameter_count(modules: Sequence[nn.Module]) -> int:
    """Weights as the architecture counts them: two in a byte of 4-bit storage."""
    return sum(
        parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        for module in modules
        for parameter in module.parameters()
    )


def _tensors(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
        for parameter in module.parameters():
            if (state := getattr(parameter, "quant_state", None)) is not None:
                yield from _state_tensors(state)


def _state_tensors(state: Any) -> Iterator[Tensor]:
    for value in vars(state).values():
        if isinstance(value, Tensor):
            yield value
        elif type(value) is type(state):  # double quantisation: the scales' own scales
            yield from _state_tensors(value)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def adapter_bytes(base: SharedBase) -> int:
    """Of the role's parameters, one layer alone."""
    return sum(value.nbytes for name, value in base.role_parameters(ROLE).items() if ".layers.0." in name)


def optimiser_bytes(base: SharedBase) -> int:
    """AdamW's state for one layer's adapter, after a step."""
    own = [value for name, value in base.role_parameters(ROLE).items() if ".layers.0." in name]
    optimiser = torch.optim.AdamW(own, lr=1e-9)
    for value in own:
        value.grad = torch.zeros_like(value)
    optimiser.step()
    for value in own:
        value.grad = None
    return sum(part.nbytes for state in optimiser.state.values() for part in state.values() if isinstance(part, Tensor))


def cache_bytes(base: SharedBase, tokens: int) -> int:
    """Of the sampler's key-value memory for a row of so many tokens, one layer alone."""
    plain_model(base.model).config.num_hidden_layers = 1
    live = LiveBytes()
    with live:
        cache = Block(TokenShape.of(plain_model(base.model)), 1, tokens)
        held = live.live
    del cache
    return held


def add_adapter(base: SharedBase, lora: LoraSection, seed: int) -> None:
    """The trained role, none of its weights zero: a new adapter's gradients of A would be."""
    base.add_role(ROLE, lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in base.role_parameters(ROLE).items():
        if "lora_B" in name:
            value.data.normal_(0.0, 0.02, generator=generator)
