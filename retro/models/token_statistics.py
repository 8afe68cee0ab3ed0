"""Log-probabilities and entropies of chosen tokens from their hidden states, a few million logits at a time.

Nothing of size N tokens × vocabulary is kept. The gradient of a token's log-probability by its own hidden state is a
vector of H numbers, which its logits determine, and the backward pass only scales it. So it is computed in the forward
pass, and no logit is computed twice. (Liger's fused loss is similar, but only on CUDA and for a complete loss: it gives
neither the entropies nor the log-probabilities that PPO's ratio needs.)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from retro.models.backbone import logits_of, plain_model

_LOGITS = 2**23
"""The number of logits at once: 32 MiB in float32, in two or three copies."""


def token_statistics(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """log softmax(z / temperature)[target] and the distribution's entropy, (N,) each, in nats.

    Args:
        model: its output layer gives the logits z.
        hidden: (N, H).
        targets: (N,) tokens.
        entropy_gradient: whether gradients flow through the entropies, which costs half as much again.
    """
    size = max(1, _LOGITS // int(plain_model(model).config.get_text_config().vocab_size))
    output_layer = cast(nn.Module, plain_model(model).get_output_embeddings())
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in output_layer.parameters()):
        return _through_output_layer(model, hidden, targets, temperature, entropy_gradient, size)
    if torch.is_grad_enabled() and hidden.requires_grad:
        found: tuple[Tensor, Tensor] = _TokenStatistics.apply(  # type: ignore[no-untyped-call]
            hidden, targets, model, temperature, entropy_gradient, size
        )
        return found
    pieces = [
        _statistics(_logits(model, piece, temperature), wanted)[:2]
        for piece, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    log_probs, entropies = map(torch.cat, zip(*pieces, strict=True))
    return log_probs, entropies


class _TokenStatistics(torch.autograd.Function):
    """Keeps d log π / d hidden, and d entropy / d hidden if asked, (N, H) each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        model: nn.Module,
        temperature: float,
        entropy_gradient: bool,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []
        slopes: list[Tensor] = []  # of log-probabilities
        entropy_slopes: list[Tensor] = []
        for states, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                piece = states.detach().requires_grad_()
                logits = _logits(model, piece, temperature)  # (n, V)
            log_probs, entropies, logs, probs = _statistics(logits.detach(), wanted)
            found.append((log_probs, entropies))
            if entropy_gradient:  # ∂H/∂z = -π (log π + H)
                logs.add_(entropies[:, None]).mul_(probs).neg_()
                entropy_slopes += torch.autograd.grad(logits, piece, logs, retain_graph=True)
            probs.neg_().scatter_add_(1, wanted[:, None], torch.ones_like(probs[:, :1]))  # ∂log π/∂z = 1[target] - π
            slopes += torch.autograd.grad(logits, piece, probs)
        ctx.save_for_backward(torch.cat(slopes), torch.cat(entropy_slopes) if entropy_gradient else None)
        log_probs, entropies = map(torch.cat, zip(*found, strict=True))
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_probs: Tensor, entropies: Tensor) -> tuple[Tensor | None, ...]:
        slopes, entropy_slopes = ctx.saved_tensors
        gradient = log_probs[:, None] * slopes
        if entropy_slopes is not None:
            gradient = gradient + entropies[:, None] * entropy_slopes
        return gradient.to(slopes.dtype), None, None, None, None, None


def _through_output_layer(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool, size: int
) -> tuple[Tensor, Tensor]:
    """The same if the output layer is trained, too (LoRA on it): its gradient needs the logits once more."""

    def of(piece: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logs = _logits(model, piece, temperature).log_softmax(-1)
        entropies = -(logs.exp() * logs).sum(-1)
        return logs.gather(-1, wanted[:, None])[:, 0], entropies if entropy_gradient else entropies.detach()

    pieces = [
        checkpoint(of, piece, wanted, use_reentrant=False)
        for piece, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    log_probs, entropies = map(torch.cat, zip(*pieces, strict=True))
    return log_probs, entropies


def _logits(model: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    logits = logits_of(model, hidden)
    return logits if temperature == 1 else logits / temperature


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies (n,), log π and π (n, V). ``logits`` becomes log π in place."""
    logs = logits.sub_(logits.logsumexp(-1, keepdim=True))
    probs = logs.exp()
    return logs.gather(-1, targets[:, None])[:, 0], -torch.linalg.vecdot(probs, logs), logs, probs
