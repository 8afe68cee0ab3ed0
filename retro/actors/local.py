"""An actor of our own: a transformers model in this process, answering all episodes of a round as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from retro.config import ActorSection, CheckpointSection, ConfigError, PositiveFloat, Speed
from retro.models.rounds import Rounds
from retro.prompts import PromptTooLongError
from retro.types import ActorError, Completion, Prompt, Sampling, TokenLimit, Usage
from retro.wire.answers import cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Refusal = PromptTooLongError | ActorError


class LocalOptions(CheckpointSection, ActorSection):
    """A transformers checkpoint in this process."""

    kind: Literal["local"] = "local"
    adapter: str | None = None
    """A LoRA adapter in PEFT's format on top of the model."""
    cache_gib: Annotated[PositiveFloat | None, Speed] = None
    """GiB that the keys and values of running episodes may take: where they are too many for it, some wait until others
    have ended. By default half of the memory that is free when the first episode begins. Processes share it equally."""

    @property
    def checkpoint(self) -> str:
        return self.model

    @property
    def longest_tokens(self) -> int | None:
        return self.context_tokens

    @property
    def parts(self) -> dict[str, str]:
        return {} if self.adapter is None else {"actor_adapter": self.adapter}

    def share(self, processes: int, shared_limits: bool = False) -> Self:
        one = super().share(processes, shared_limits)
        return one if self.cache_gib is None else one.model_copy(update={"cache_gib": self.cache_gib / processes})


@dataclass(frozen=True, slots=True)
class _Call:
    prompt: Prompt
    sampling: Sampling


class LocalActor:
    """Implements :class:`retro.types.Actor` with the project's own generation.

    Calls of one ``Sampling.session`` share a row of the key-value cache: the next prompt of an episode costs what was
    appended to it. What a call answers depends on its prompt and its sampling alone, not on the others in its round.

    Args:
        rows: sequences that are computed at once.
        cache_bytes: what keys and values may take; by default half of the memory that is free at the first call.
        max_prompt_tokens: longer prompts are shortened by rule (``prompt_limit``); None: they are errors.
        chat_template_kwargs: see :func:`retro.models.text.encode_prompt`.
    """

    Options = LocalOptions

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: int = 256,
        max_prompt_tokens: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        from retro.models.appending import PromptEncoder
        from retro.models.generation import Engine

        self._tokenizer = tokenizer
        self._encode = PromptEncoder(tokenizer, chat_template_kwargs, 2 * rows)
        self.prompt_limit: TokenLimit | None = None
        if max_prompt_tokens is not None:
            self.prompt_limit = TokenLimit(
                lambda text: len(self._encode(text)), max_prompt_tokens, "actor.context_tokens"
            )
        self._engine = Engine(model, tokenizer, rows, cache_bytes)
        self._rounds: Rounds[_Call, Completion | _Refusal] = Rounds(self._answer)

    @classmethod
    def from_options(
        cls, options: LocalOptions, device: torch.device | str = "auto", ledger: Path | None = None
    ) -> LocalActor:
        """Load the checkpoint, with its LoRA adapter if the options name one; a ``ledger`` has nothing to count.

        Raises:
            ConfigError: if it cannot be loaded, or its context has no room for an answer of ``actor.max_tokens``.
            UnsupportedModelError: if what it samples is not what it computes.
        """
        from retro.models.exactness import check_sampling
        from retro.models.loading import load_base, load_tokenizer

        model, tokenizer = load_base(options, device), load_tokenizer(options)
        if options.adapter is not None:
            from retro.models.adapters import with_adapter

            model = with_adapter(model, options.adapter)
        context = options.context_tokens or getattr(model.config, "max_position_embeddings", None)
        room = None if context is None else context - options.max_tokens
        if room is not None and room <= 0:
            raise ConfigError(f"actor.max_tokens={options.max_tokens} leaves nothing of a context of {context} tokens")
        check_sampling(model, tokenizer)
        cache_bytes = None if options.cache_gib is None else int(options.cache_gib * 2**30)
        return cls(model, tokenizer, options.concurrency, room, options.chat_template_kwargs, cache_bytes)

    @contextmanager
    def conversation(self, session: str) -> Iterator[None]:
        """Within, ``session`` keeps its row of the memory once it has one, and new sessions wait rather than take it.

        Whoever is within must not wait for the answer to another session.
        """
        self._engine.sessions.hold(session)
        try:
            yield
        finally:
            self._engine.sessions.release(session)
            self._rounds.again()

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``; the text ends before the first stop string.

        Raises:
            PromptTooLongError: if the prompt is longer than the model's context.
            ActorError: if it is empty.
        """
        answer = await self._rounds.submit(_Call(prompt, sampling))
        if not isinstance(answer, Completion):
            raise answer
        return answer

    def _answer(self, calls: list[_Call]) -> list[Completion | _Refusal | None]:
        """The answers; None for a call that waits for room."""
        from retro.models.text import decode_response

        answers: list[Completion | _Refusal | None] = [None] * len(calls)
        requests: dict[int, tuple[str, list[int], Sampling]] = {}
        for i, call in enumerate(calls):
            ids = self._encode(call.prompt)
            try:
                self._engine.check_length(len(ids))
            except ValueError as error:
                answers[i] = PromptTooLongError(str(error)) if ids else ActorError(str(error))
            else:
                requests[i] = (call.sampling.session, ids, call.sampling)
        outputs = self._engine.take_turns(list(requests.values()))
        for (i, (_, ids, sampling)), output in zip(requests.items(), outputs, strict=True):
            if output is not None:
                text = decode_response(self._tokenizer, output.ids)
                usage = Usage(len(ids), len(output.ids))
                answers[i] = Completion(cut(text, sampling.stop).strip(), output.finish_reason, usage)
        return answers
