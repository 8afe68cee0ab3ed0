"""A base in pieces (FSDP2): each process holds its share of every decoder layer and gathers a layer when it is needed.

Only the frozen layers are in pieces. Adapters, heads, embeddings and the output layer stay whole on each process, so
roles, gradient sums, optimiser and checkpoints are the same as for a whole base.

Gathering is a collective: all processes must gather the same layers in the same order. But they make different numbers
of passes, since prompts and samples have different lengths, and a process may have no row of a minibatch. So before
each pass the processes agree on what comes next (:class:`Lockstep`). A process that does not need the pass gathers the
layers with the others, computes nothing, and asks again. Until they meet in :meth:`Lockstep.finish`, all processes have
the same sequence of collectives:

    agree, gather the layers in the agreed order, agree, gather …, agree on nothing

All leave together, so the next collective (a gradient sum, a gathering of records) finds them all. Two conditions must
hold. There is no other collective until then. And a pass gathers each layer once, a backward pass in reverse order: so
only the next layer is fetched ahead, gradients reach the first layer, and every forward pass in training is followed by
its own backward pass.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from retro.config import ConfigError, ModelSection
from retro.models.backbone import decoder_of

logger = logging.getLogger(__name__)

NOTHING, FORWARD, BACKWARD = range(3)
"""What a process needs next. If the processes differ, the greatest value comes next."""

_AS_IT_IS = {
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""The settings of an FSDP launch that our own loops require."""


def launched_pieces(stage: str, section: ModelSection, own_loop: bool = True) -> Literal["fsdp2", "deepspeed"] | None:
    """How ``accelerate launch`` asks for a base in pieces; None if it does not.

    This reads the environment that the launch sets, because accelerate silently ignores both ways on a CPU.

    Args:
        own_loop: whether the stage trains in our own loop, and not in transformers' trainer, which supports more.

    Raises:
        ConfigError: if the stage cannot train this base under this launch, naming the remedy.
    """
    if not _launched("ACCELERATE_USE_DEEPSPEED") and not _launched("ACCELERATE_USE_FSDP"):
        return None
    if section.quantization != "none":
        raise ConfigError(
            f"{stage}: a base with model.quantization={section.quantization} cannot be cut in pieces: set "
            "model.quantization=none, or launch with configs/accelerate/multi-gpu.yaml (a whole 4-bit base on each GPU)"
        )
    if _launched("ACCELERATE_USE_DEEPSPEED"):
        if own_loop:
            raise ConfigError(
                f"{stage} does not run under DeepSpeed: launch it with configs/accelerate/fsdp2.yaml (a base in "
                "pieces) or configs/accelerate/multi-gpu.yaml (a whole base on each GPU)"
            )
        return "deepspeed"
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(f"{stage}: FSDP 1 is not supported: set fsdp_version: 2 (configs/accelerate/fsdp2.yaml)")
    for name, value in _AS_IT_IS.items() if own_loop else ():
        if os.environ.get(name, value).lower() != value:
            raise ConfigError(
                f"{stage} runs only with {name.lower()}: {value}: use configs/accelerate/fsdp2.yaml as it is"
            )
    return "fsdp2"


class Lockstep:
    """Keeps processes together that make different numbers of passes through a decoder with sharded ``layers``."""

    def __init__(self, decoder: nn.Module, layers: Sequence[FSDPModule], device: torch.device) -> None:
        self._layers, self._device = layers, device
        self._unanswered = False
        """Whether a forward pass in training still waits for its backward pass."""
        decoder.register_forward_pre_hook(self._before_forward, prepend=True)  # before FSDP2's own, which gathers
        decoder.register_forward_hook(self._after_forward)

    def finish(self) -> None:
        """Gather with the others until no process needs a pass. All processes must call it at the same points."""
        self._until(NOTHING)

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if self._unanswered:
            raise RuntimeError(
                "two forward passes before a backward pass cannot be trained with a base in pieces: call backward "
                "after each, or launch with whole bases"
            )
        self._until(FORWARD)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            self._unanswered = True
            output.last_hidden_state.register_hook(self._before_backward)

    def _before_backward(self, gradient: Tensor) -> None:
        self._unanswered = False
        self._until(BACKWARD)

    def _until(self, wish: int) -> None:
        while (agreed := self._agree(wish)) != wish:
            for layer in self._layers if agreed == FORWARD else reversed(self._layers):
                layer.unshard()
                layer.reshard()

    def _agree(self, wish: int) -> int:
        greatest = torch.tensor([wish], device=self._device)
        distributed.all_reduce(greatest, op=distributed.ReduceOp.MAX)
        return int(greatest)


def shard_decoder(
    model: PreTrainedModel, adapters: Mapping[str, Collection[nn.Parameter]], device: torch.device
) -> Lockstep:
    """Cut the parameters of a model's layers in equal pieces on ``device``, one for each process; the rest stays whole.

    This goes layer by layer, so a device never holds more than one whole layer.

    Args:
        model: frozen, on any device. Only its decoder will be called.
        adapters: the parameters in the layers that are not cut, by role.

    Raises:
        ConfigError: for a model without a list of layers, or trainable adapters that do not adapt the first layer
            (backward passes would then end at different layers).
    """
    decoder: nn.Module = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"{type(decoder).__name__} has no list of layers to cut in pieces: launch with whole bases")
    first = set(layers[0].parameters())
    for role, parameters in adapters.items():
        if first.isdisjoint(parameters) and any(parameter.requires_grad for parameter in parameters):
            raise ConfigError(
                f"the adapter {role!r} has nothing in the first layer: set lora.target_modules=all-linear"
            )
    whole = {parameter for parameters in adapters.values() for parameter in parameters}
    processes = distributed.get_world_size()
    size = sum(value.numel() * value.element_size() for value in set(layers.parameters()) - whole)
    logger.info("the base's layers (%.1f MiB) are in pieces over %d processes", size / 2**20, processes)
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params=set(decoder.parameters()))
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    sharded = [cast(FSDPModule, layer) for layer in layers]
    # Set here, because FSDP2 would choose by a list of all forward passes so far, including those of generation. The
    # first layer has no layer before it, so it names itself, which is already gathered.
    for number, piece in enumerate(sharded):
        piece.set_modules_to_backward_prefetch([sharded[max(number - 1, 0)]])
    with torch.no_grad():  # the first pass creates FSDP2's buffers, which must not be inference tensors
        decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return Lockstep(decoder, sharded, device)


def _launched(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
