"""The self-test of a base: all our ways of computing log-probabilities must agree with its own forward pass.

We compute log-probabilities in several ways: for many responses behind one prompt, for samples from a key-value cache,
and in training mode. If one of them differed from the model's own pass over one sequence, training would silently go
wrong. So when a base is loaded, a few short sequences of ordinary tokens go through it in each of these ways. If a
shared way differs, each response is computed by itself from then on; if that differs, too, the base is refused.

The test is made once for each base, device and version of this code. Its outcome is kept in the user's cache folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.config import LoraSection
from retro.models.backbone import UnsupportedModelError, hidden_states, plain_model
from retro.models.bases import Use, forbid_sharing, obstacle
from retro.models.generation import Engine
from retro.models.outcomes import Outcome, keep_outcome, outcome_file, read_outcome
from retro.models.own_pass import Texts, own_log_probs, relative_error, rows
from retro.models.packing import pack, response_outputs
from retro.models.token_statistics import token_statistics
from retro.types import Sampling

logger = logging.getLogger(__name__)

ROLE = "self-test"
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}
"""How much log-probabilities may differ (root mean square), relative to their spread over the vocabulary. Rounding in
another order gives a tenth of this; a wrong mask or a missing scale gives a multiple."""
_RANK = 2
_CHANGE = 0.05
"""The rank of the test's adapter, and the size of its B. A larger change would make a trained model chaotic, so that
rounding errors grow without limit."""


class Adaptable(Protocol):
    """A base with roles (:class:`retro.models.adapters.SharedBase`)."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def model(self) -> PreTrainedModel: ...

    def add_role(self, role: str, lora: LoraSection, seed: int) -> None: ...

    def remove_role(self, role: str) -> None: ...

    def role(self, name: str | None, train: bool = False) -> AbstractContextManager[nn.Module]: ...

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]: ...


def check_base(base: Adaptable, lora: LoraSection) -> None:
    """Test a base that will be trained: packed = alone, sampled = forward, training mode = evaluation mode, gradients
    finite. Shared ways that are not exact are forbidden for it.

    Raises:
        UnsupportedModelError: if it is not exact without sharing either, or cannot be adapted or trained; one sentence
            that names its architecture and what differs.
    """
    plain = plain_model(base.model)

    def test() -> Outcome:
        _require_causal_attention(plain)
        with base.role(None):
            _require_split_logits(plain, base.tokenizer)
        with _test_role(base, lora):
            return {"sampling": _check_sampling(base), "training": _check_training(base)}

    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in plain.modules())
    _once(plain, f"{type(base).__name__} {lora.target_modules} {checkpointed}", test)


def check_sampling(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Test a model that only samples, such as an actor: sampled = forward.

    Raises:
        UnsupportedModelError: as :func:`check_base`.
    """

    def test() -> Outcome:
        _require_causal_attention(model)
        with torch.no_grad():
            return {"sampling": _sampling_outcome(model, tokenizer)}

    _once(model, "actor", test)


def _once(model: PreTrainedModel, purpose: str, test: Callable[[], Outcome]) -> None:
    """Make the test, or use an earlier outcome; then forbid what is not exact."""
    path = outcome_file(model, purpose)
    outcome = read_outcome(path)
    if outcome is None:
        started = time.perf_counter()
        outcome = test()
        logger.debug("the self-test took %.2f s", time.perf_counter() - started)
        keep_outcome(path, outcome)
    for use, reason in outcome.items():
        if reason is not None:
            logger.warning("%s %s: %s does not share prompts, which is slower", _name(model), reason, use)
            forbid_sharing(model, use, reason)


def _check_sampling(base: Adaptable) -> str | None:
    with base.role(ROLE) as model:
        return _sampling_outcome(model, base.tokenizer)


def _sampling_outcome(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why samples cannot share their prompt, or None."""
    texts = Texts.of(plain_model(model), tokenizer)

    def difference() -> float:
        engine = Engine(model, tokenizer)  # type: ignore[arg-type]  # a PEFT wrapper also fits
        both = _sampled_difference(model, engine, texts), _continued_difference(model, engine, texts)
        return float(torch.tensor(both).max())  # NaN if either is NaN, unlike Python's max

    return _shared_or_plain(plain_model(model), "sampling", difference, texts.longest + 2 * texts.answer)


def _check_training(base: Adaptable) -> str | None:
    plain = plain_model(base.model)
    texts = Texts.of(plain, base.tokenizer)
    packed = pack(texts.prompts, texts.responses)
    with base.role(ROLE) as model:
        expected = [
            own_log_probs(model, prompt, response)
            for prompt, group in zip(texts.prompts, texts.responses, strict=True)
            for response in group
        ]

        def evaluated() -> float:
            return relative_error(rows(response_outputs(model, packed).log_probs, packed.mask), expected)

        reason = _shared_or_plain(plain, "training", evaluated, texts.longest)
    if reason is not None:
        forbid_sharing(plain, "training", reason)
    if plain.dtype == torch.float16:  # such a base is never trained (retro.models.loading.require_trainable)
        return reason

    def trained() -> float:
        with base.role(ROLE, train=True) as model:
            found = response_outputs(model, packed)
            error = relative_error(rows(found.log_probs.detach(), packed.mask), expected)
            found.log_probs.sum().backward()
        return error

    _require(plain, "its log-probabilities in training mode differ from those in evaluation mode", trained)
    gradients = [value.grad for value in base.role_parameters(ROLE).values() if value.grad is not None]
    if not gradients or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        found = "are not finite" if gradients else "do not reach its adapters"
        raise UnsupportedModelError(f"{_name(plain)} cannot be trained: its gradients {found}")
    return reason


def _require_causal_attention(model: PreTrainedModel) -> None:
    """Refuse attention that selects its keys by an index: in transformers it also selects later tokens in a sequence
    that is longer than the selection, which the short sequences of this test cannot show."""
    selected = getattr(model.config.get_text_config(), "index_topk", None)
    if selected is not None:
        raise UnsupportedModelError(
            f"{_name(model)} is not supported: beyond {selected} tokens its sparse attention depends on later tokens"
        )


def _require_split_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Require that our logits, made from hidden states, are the model's own."""
    texts = Texts.of(model, tokenizer)
    prompt, response = texts.prompts[0], texts.responses[0][-1]

    def difference() -> float:
        expected = own_log_probs(model, prompt, response)
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        hidden = hidden_states(model, input_ids=ids, use_cache=False)[0, len(prompt) - 1 : -1]
        found, _ = token_statistics(model, hidden, ids[0, len(prompt) :])
        return relative_error([found], [expected])

    _require(model, "its logits are not its output layer applied to its last hidden state", difference)


def _shared_or_plain(model: PreTrainedModel, use: Use, difference: Callable[[], float], longest: int) -> str | None:
    """Why prompts cannot be shared although the architecture is listed; None if they can, or it is not listed.

    Raises:
        UnsupportedModelError: if the model is not exact without sharing either.
    """
    reason = None
    if obstacle(model, use, longest) is None:
        found = _measured(difference)
        logger.debug("tested whether %s differs on shared prompts: %s", use, _shown(found))
        if not isinstance(found, Exception) and found <= TOLERANCES[model.dtype]:
            return None
        reason = f"differs on shared prompts from itself alone ({_shown(found)})"
        forbid_sharing(model, use, reason)
    what = {
        "sampling": "what it samples is not what its forward pass says",
        "training": "its log-probabilities depend on the other sequences of a pass",
    }
    _require(model, what[use], difference)
    return reason


def _require(model: PreTrainedModel, what: str, difference: Callable[[], float]) -> None:
    found = _measured(difference)
    logger.debug("tested whether %s: %s", what, _shown(found))
    if isinstance(found, Exception):
        raise UnsupportedModelError(f"{_name(model)} is not supported: {_shown(found)}") from found
    if not found <= TOLERANCES[model.dtype]:
        raise UnsupportedModelError(
            f"{_name(model)} is not supported: {what} ({_shown(found)}; up to {TOLERANCES[model.dtype]:g} is rounding)"
        )


def _measured(difference: Callable[[], float]) -> float | Exception:
    """The difference, or the exception that the model's code raised (except for a lack of memory)."""
    try:
        return difference()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return error


def _shown(found: float | Exception) -> str:
    if isinstance(found, Exception):
        lines = str(found).strip().splitlines()
        return f"{type(found).__name__}: {lines[0]}" if lines else type(found).__name__
    return f"by {found:.2g} of the spread of its log-probabilities"


@contextmanager
def _test_role(base: Adaptable, lora: LoraSection) -> Iterator[None]:
    """A small adapter with an effect, on the layers that the config adapts."""
    plain = plain_model(base.model)
    try:
        small = {"r": _RANK, "alpha": float(_RANK), "dropout": 0.0}
        base.add_role(ROLE, lora.model_copy(update=small), seed=0)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unadaptable(plain, lora, error) from error
    try:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in base.role_parameters(ROLE).values():
                if not value.any():  # B, which is 0 at the start
                    value.copy_(_CHANGE * torch.randn(value.shape, generator=generator))
        texts = Texts.of(plain, base.tokenizer)
        with base.role(ROLE) as model:
            found = _measured(lambda: own_log_probs(model, texts.prompts[0], texts.responses[0][0])[1])
        if isinstance(found, Exception):
            raise _unadaptable(plain, lora, found) from found
        yield
    finally:
        base.remove_role(ROLE)


def _unadaptable(model: PreTrainedModel, lora: LoraSection, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{_name(model)} takes no adapter on model.lora.target_modules={lora.target_modules} ({_shown(error)}): name "
        "the layers to adapt, such as [q_proj, v_proj]"
    )


def _sampled_difference(model: nn.Module, engine: Engine, texts: Texts) -> float:
    sampling = Sampling(temperature=1.0, max_tokens=texts.answer)
    drawn = engine.sample(texts.prompts, 2, sampling, [[1, 2]] * len(texts.prompts))
    pairs = [(prompt, answer) for prompt, group in zip(texts.prompts, drawn, strict=True) for answer in group]
    found = [torch.tensor(answer.log_probs, device=plain_model(model).device) for _, answer in pairs]
    return relative_error(found, [own_log_probs(model, prompt, answer.ids) for prompt, answer in pairs])


def _continued_difference(model: nn.Module, engine: Engine, texts: Texts) -> float:
    """The difference in the second turn of a conversation, behind the keys and values of the first."""
    prompt, more = texts.prompts[0], texts.responses[0][0]
    sampling = Sampling(temperature=1.0, max_tokens=texts.answer, session=ROLE)
    [first] = engine.complete([(ROLE, prompt, sampling)])
    longer = [*prompt, *first.ids, *more]
    [second] = engine.complete([(ROLE, longer, sampling)])
    found = [torch.tensor(second.log_probs, device=plain_model(model).device)]
    return relative_error(found, [own_log_probs(model, longer, second.ids)])


def _name(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return f"the base {model.config.name_or_path!r} (architecture {config.model_type!r})"
