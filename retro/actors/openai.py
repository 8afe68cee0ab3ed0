"""The actor behind any OpenAI-compatible endpoint: OpenAI's own, vLLM, llama.cpp, Ollama, a proxy."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import model_validator

from retro.actors.budget import Budget
from retro.actors.response_cache import ResponseCache, request_key
from retro.actors.shared_limits import SharedLimits
from retro.actors.silence import SilenceMonitor
from retro.actors.token_count import prompt_limit
from retro.config import ActorSection, BudgetSection, ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, Speed
from retro.types import ActorError, Completion, Prompt, Sampling, TokenLimit
from retro.wire.client import Client
from retro.wire.credentials import KEY, NO_KEY, read_key
from retro.wire.failures import Failure, Problem, Words
from retro.wire.limits import RateLimiter
from retro.wire.request import OPENAI_URL, RequestSection

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_URL = "OPENAI_BASE_URL"
_OF_ONE_CALL = (
    Problem.NOBODY,
    Problem.NO_ANSWER,
    Problem.MALFORMED,
    Problem.TOO_LONG,
    Problem.REFUSED,
    Problem.BUSY,
)
"""Problems that end an episode. Every further call would meet the others, too: they stop the run."""
_REMEDIES = {
    Problem.REDIRECT: "set actor.base_url to the address that answers by itself",
    Problem.MODEL: "set actor.model or actor.base_url",
    Problem.TOO_LONG: "set actor.context_tokens and actor.tokenizer, and longer prompts are shortened",
    Problem.PARAMETER: "see actor.limit_parameter, and actor.extra_body, where null leaves a parameter out",
}


class OpenAIOptions(RequestSection, ActorSection):
    """Any OpenAI-compatible endpoint."""

    kind: Literal["openai"] = "openai"
    model: str = ActorSection.model_fields["model"].default
    """What the server calls the model."""
    tokenizer: str | None = None
    """A tokenizer (folder or hub name) that counts as the served model does; needed for ``context_tokens``."""
    timeout_seconds: Annotated[PositiveFloat, Speed] = 120.0
    """Of one request."""
    max_retries: Annotated[NonNegativeInt, Speed] = 6
    """Of one request, after timeouts, cut connections, rate limits and server errors, with growing jittered pauses."""
    requests_per_minute: Annotated[PositiveInt | None, Speed] = None
    tokens_per_minute: Annotated[PositiveInt | None, Speed] = None
    budget: Annotated[BudgetSection, Speed] = BudgetSection()
    cache: Annotated[str | None, Speed] = None
    """A file that keeps the answers of temperature 0: an equal request is not sent again."""

    @model_validator(mode="before")
    @classmethod
    def _templated(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and (kwargs := values.get("chat_template_kwargs")):
            raise ValueError(
                "chat_template_kwargs: an openai actor's server renders the chat template; set "
                f"extra_body={{chat_template_kwargs: {kwargs}}}, which vLLM and SGLang read"
            )
        return values

    @model_validator(mode="after")
    def _counted(self) -> OpenAIOptions:
        if self.context_tokens is not None and self.tokenizer is None:
            raise ValueError("context_tokens: to count an openai actor's tokens, give its tokenizer too")
        return self

    @property
    def parts(self) -> dict[str, str]:
        counted = self.context_tokens is not None and self.tokenizer is not None
        return {"actor_tokenizer": str(self.tokenizer)} if counted else {}

    def share(self, processes: int, shared_limits: bool = False) -> Self:
        one = super().share(processes, shared_limits)
        if shared_limits:
            return one
        budget = next((key for key in ("tokens", "money") if getattr(self.budget, key) is not None), None)
        if budget is not None and processes > 1:
            raise ConfigError(
                f"actor.budget.{budget}: one process counts what is spent, and runner.kind=processes has {processes}: "
                "set runner.kind=local or ray, or leave the limit out"
            )
        limits = {key: getattr(self, key) for key in ("requests_per_minute", "tokens_per_minute")}
        shares = {key: limit // processes for key, limit in limits.items() if limit is not None}
        for key, share in shares.items():
            if not share:
                raise ConfigError(
                    f"actor.{key}={limits[key]} cannot be divided among {processes} processes: lower runner.workers"
                )
        return one.model_copy(update=shares)


class OpenAIActor:
    """Asks ``options.model`` for completions, at most ``options.concurrency`` at a time.

    Rate limits are kept, what passes is asked again, what is spent is counted, and equal requests at temperature 0 are
    answered from the cache. Results are as deterministic as the server: a seed is sent with every draw.

    Args:
        options: The config; ``base_url`` None means OpenAI's own endpoint. The key is read from ``OPENAI_API_KEY``.
        ledger: Where what is spent is kept, see :class:`~retro.actors.budget.Budget`.

    Raises:
        ConfigError: if OpenAI's own endpoint is asked for and there is no key, or the key cannot be sent; for a URL
            that is none or holds a password, a cache or a tokenizer that cannot be opened, an ``extra_body`` that says
            what the config says elsewhere.
    """

    Options = OpenAIOptions

    def __init__(self, options: OpenAIOptions, ledger: Path | None = None) -> None:
        self._name = f"actor {options.model!r} at {options.base_url or OPENAI_URL}"
        self.budget = Budget(options.budget, ledger)
        words = Words(
            self._name,
            url="actor.base_url",
            prefix="actor.",
            timeout="actor.timeout_seconds",
            errors=dict.fromkeys(_OF_ONE_CALL, ActorError),
            remedies=_REMEDIES,
        )
        self._client = Client(
            options,
            words,
            _key_of(options),
            options.timeout_seconds,
            options.max_retries,
            options.concurrency,
            RateLimiter(options.requests_per_minute, options.tokens_per_minute),
            self.budget,
        )
        self._silences = SilenceMonitor(self._name)
        self.prompt_limit: TokenLimit | None = None
        if options.context_tokens is not None and options.tokenizer is not None:
            self.prompt_limit = prompt_limit(
                options.tokenizer, options.context_tokens, options.max_tokens, options.endpoint == "chat"
            )
        self._cache = ResponseCache(options.cache) if options.cache else None
        self._estimates = False

    @classmethod
    def from_options(
        cls, options: OpenAIOptions, device: torch.device | str = "auto", ledger: Path | None = None
    ) -> OpenAIActor:
        """The actor; a ``device`` is the server's own concern."""
        return cls(options, ledger)

    def limit_by(self, limits: SharedLimits) -> None:
        """Keep limits that other processes keep, too, in place of its own."""
        self._client.limit_by(limits, limits)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``; the text ends before the first stop string.

        Raises:
            ActorError: if this call failed for good (after the retries), or was refused (a prompt too long, say).
            ConfigError: if every call would fail: a refused key, an empty account, an unknown model or URL, a redirect;
                or if more than half of the answers say nothing.
            QuotaError: if the server asks every caller to wait for more than two minutes.
            BudgetExceededError: if ``actor.budget`` is spent.
        """
        if self._cache is None or sampling.temperature > 0:
            return await self._asked(prompt, sampling)
        key = request_key(self._client.form.url, self._client.form.body(prompt, sampling))
        completion = await self._cache.get(key)
        if completion is None:
            completion = await self._asked(prompt, sampling)
            if completion.text.strip():  # what made it silent may be mended at the server
                await self._cache.put(key, completion)
        return completion

    async def check(self) -> None:
        """Ask whether anybody is there, before anything expensive is begun: it costs no tokens.

        Raises:
            ConfigError: if nobody listens at ``base_url``, or the key is refused. Whatever else is answered will do:
                not every server lists its models.
        """
        listed = await self._client.models()
        if not isinstance(listed, Failure):
            return
        if listed.problem is Problem.KEY:
            raise ConfigError(f"{self._name}: {listed.text}")
        if listed.problem is Problem.NOBODY:
            raise ConfigError(f"{self._name}: nobody listens there: start the server, or correct actor.base_url")
        logger.debug("the actor's server does not list its models: %s", listed.text)

    async def aclose(self) -> None:
        """Close connections and cache now. Otherwise the loop's end closes the ones, and the actor's end the other."""
        await self._client.aclose()
        if self._cache is not None:
            self._cache.close()

    async def _asked(self, prompt: Prompt, sampling: Sampling) -> Completion:
        answer = await self._client.ask(prompt, sampling)
        if not answer.counted and not self._estimates:
            self._estimates = True
            logger.warning("the actor's server does not tell what answers cost: tokens are estimated by bytes")
        choice = answer.choices[0]
        self._silences.count(choice.silence)
        return Completion(choice.text, choice.finish_reason, answer.usage)


def _key_of(options: OpenAIOptions) -> str:
    if options.base_url is None and _URL in os.environ:
        raise ConfigError(
            f"actor.base_url is not given, but {_URL} is set: a run reads its config alone; write it there"
        )
    key = read_key()
    if key == NO_KEY and options.base_url is None:
        raise ConfigError(f"actor.kind openai: set the environment variable {KEY}, or actor.base_url to your server")
    return key
