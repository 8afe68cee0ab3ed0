"""The actor behind any OpenAI-compatible endpoint: OpenAI's own, vLLM, llama.cpp, Ollama, a proxy."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import model_validator

from retro.actors.answers import Answer, MalformedAnswerError, cut, most_chars, read_answer
from retro.actors.budget import Budget
from retro.actors.credentials import KEY, NO_KEY, read_key
from retro.actors.failures import Failure, Failures
from retro.actors.http import http_library, open_client
from retro.actors.limits import RateLimiter
from retro.actors.openai_request import RequestForm, RequestSection, estimated_tokens
from retro.actors.response_cache import ResponseCache, request_key
from retro.actors.retrying import LONGEST_WAIT_SECONDS, backoff_seconds, spread_seconds
from retro.actors.silence import Silence, SilenceMonitor
from retro.actors.token_count import prompt_limit
from retro.config import ActorSection, BudgetSection, ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, Speed
from retro.types import Completion, Prompt, Sampling, TokenLimit, Usage

if TYPE_CHECKING:
    import torch
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

_URL = "OPENAI_BASE_URL"
_CONNECT_SECONDS = 10.0
_POOL_CONNECTIONS = 32
"""Of one client: at every request a pool looks at all connections that it has."""


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


@dataclass(frozen=True, slots=True)
class _Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    opened: AsyncGenerator[list[AsyncOpenAI]]
    """Holds the clients open; they are closed with the loop, which closes its generators."""
    free: list[AsyncOpenAI]
    """A client for each further request that may be under way, the one with the latest used connection last."""
    slots: asyncio.Semaphore


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
        self._key = _key_of(options)
        self._options = options
        self._form = RequestForm(options)
        name = f"actor {options.model!r} at {self._form.base_url}"
        self._failures = Failures(name)
        self._silences = SilenceMonitor(name)
        self._limiter = RateLimiter(options.requests_per_minute, options.tokens_per_minute)
        self.budget = Budget(options.budget, ledger)
        self.prompt_limit: TokenLimit | None = None
        if options.context_tokens is not None and options.tokenizer is not None:
            self.prompt_limit = prompt_limit(
                options.tokenizer, options.context_tokens, options.max_tokens, options.endpoint == "chat"
            )
        self._cache = ResponseCache(options.cache) if options.cache else None
        self._connection: _Connection | None = None
        self._answered = False
        self._estimates = False

    @classmethod
    def from_options(
        cls, options: OpenAIOptions, device: torch.device | str = "auto", ledger: Path | None = None
    ) -> OpenAIActor:
        """The actor; a ``device`` is the server's own concern."""
        return cls(options, ledger)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``; the text ends before the first stop string.

        Raises:
            ActorError: if this call failed for good (after the retries), or was refused (a prompt too long, say).
            ConfigError: if every call would fail: a refused key, an empty account, an unknown model or URL, a redirect;
                or if more than half of the answers say nothing.
            QuotaError: if the server asks every caller to wait for more than two minutes.
            BudgetExceededError: if ``actor.budget`` is spent.
        """
        body = self._form.body(prompt, sampling)
        if self._cache is None or sampling.temperature > 0:
            return await self._asked(body, prompt, sampling)
        key = request_key(self._form.url, body)
        completion = await self._cache.get(key)
        if completion is None:
            completion = await self._asked(body, prompt, sampling)
            if completion.text.strip():  # what made it silent may be mended at the server
                await self._cache.put(key, completion)
        return completion

    async def check(self) -> None:
        """Ask whether anybody is there, before anything expensive is begun: it costs no tokens.

        Raises:
            ConfigError: if nobody listens at ``base_url``, or the key is refused. Whatever else is answered will do:
                not every server lists its models.
        """
        from openai import APIConnectionError, APIError, APIStatusError, HttpxBinaryResponseContent

        connection = await self._connected()
        mistake: Exception | None = None  # raised outside of ``except``: the SDK's errors hold the key
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await connection.free[-1].get("/models", cast_to=HttpxBinaryResponseContent)
        except APIStatusError as error:
            if error.status_code == 401:
                mistake = self._failures.of(error).error
        except APIConnectionError as error:
            if isinstance(error.__cause__, http_library().ConnectError):
                mistake = ConfigError(
                    f"actor {self._options.model!r}: nobody listens at {self._form.base_url}: start the server, or "
                    "correct actor.base_url"
                )
        except (APIError, TimeoutError) as error:
            logger.debug("the actor's server does not list its models (%s)", type(error).__name__)
        if mistake is not None:
            raise mistake

    async def aclose(self) -> None:
        """Close connections and cache now. Otherwise the loop's end closes the ones, and the actor's end the other."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.loop is asyncio.get_running_loop():
            await connection.opened.aclose()
        if self._cache is not None:
            self._cache.close()

    async def _asked(self, body: dict[str, Any], prompt: Prompt, sampling: Sampling) -> Completion:
        estimate = self._form.estimate(prompt, sampling)
        attempt = 0
        while isinstance(outcome := await self._once(body, estimate, sampling), Failure):
            asked = outcome.wait_seconds
            if asked is not None and asked > LONGEST_WAIT_SECONDS:
                raise self._failures.asked_to_wait_too_long(outcome, asked)
            if asked is not None and outcome.for_all:
                self._limiter.hold(asked)
            if not outcome.again or attempt == self._options.max_retries:
                raise outcome.error
            key = (sampling.session, sampling.seed)
            await asyncio.sleep(
                backoff_seconds(attempt, *key) if asked is None else spread_seconds(asked, attempt, *key)
            )
            attempt += 1
        return outcome

    async def _once(self, body: dict[str, Any], estimate: Usage, sampling: Sampling) -> Completion | Failure:
        """One request, when it is its turn: within the concurrency, the budget and the rate limits."""
        connection = await self._connected()
        async with connection.slots:
            client = connection.free.pop()
            try:
                await self.budget.reserve(estimate)
                return await self._paid(client, body, estimate, sampling)
            finally:
                connection.free.append(client)

    async def _paid(
        self, client: AsyncOpenAI, body: dict[str, Any], estimate: Usage, sampling: Sampling
    ) -> Completion | Failure:
        used = Usage()
        try:
            await self._limiter.admit(estimate.total)
            outcome = await self._sent(client, body)
            if isinstance(outcome, Failure):
                return outcome
            used = self._usage(outcome, estimate)
            self._limiter.correct(estimate.total, used.total)
        finally:
            self.budget.settle(estimate, used)
        text = cut(outcome.text, sampling.stop)
        silence = Silence.EMPTY if outcome.text.strip() else outcome.silence
        self._silences.count(None if text.strip() else silence)
        if len(text) > (most := most_chars(sampling.max_tokens)):
            return Completion(text[:most], "length", used)
        return Completion(text, outcome.finish_reason, used)

    async def _sent(self, client: AsyncOpenAI, body: dict[str, Any]) -> Answer | Failure:
        """What came back. Nothing is raised from an exception of the SDK's: those hold the key."""
        from openai import APIError, HttpxBinaryResponseContent

        try:
            response = await client.post(self._form.path, cast_to=HttpxBinaryResponseContent, body=body)
        except APIError as error:
            return self._failures.of(error)
        try:
            answer = read_answer(response.content, self._options.endpoint)
        except MalformedAnswerError as error:
            return self._failures.malformed(error, self._answered)
        self._answered = True
        return answer

    def _usage(self, answer: Answer, estimate: Usage) -> Usage:
        if answer.usage is not None:
            return answer.usage
        if not self._estimates:
            self._estimates = True
            logger.warning("the actor's server does not tell what answers cost: tokens are estimated by bytes")
        return Usage(estimate.prompt_tokens, estimated_tokens(answer.text))

    async def _connected(self) -> _Connection:
        """What belongs to the running event loop: connections die with their loop."""
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            opened = self._open()
            clients = await anext(opened)
            free = [client for client in clients for _ in range(_POOL_CONNECTIONS)][: self._options.concurrency]
            self._connection = _Connection(loop, opened, free, asyncio.Semaphore(len(free)))
        return self._connection

    async def _open(self) -> AsyncGenerator[list[AsyncOpenAI]]:
        from openai import AsyncOpenAI, Timeout

        library, seconds = http_library(), self._options.timeout_seconds
        limits = library.Limits(max_connections=_POOL_CONNECTIONS, max_keepalive_connections=_POOL_CONNECTIONS)
        timeout = Timeout(None, connect=min(_CONNECT_SECONDS, seconds))
        certificates = library.create_ssl_context()
        clients = [
            AsyncOpenAI(
                api_key=self._key,
                base_url=self._form.base_url,
                max_retries=0,
                http_client=open_client(
                    seconds, "actor.timeout_seconds", verify=certificates, limits=limits, timeout=timeout
                ),
            )
            for _ in range(math.ceil(self._options.concurrency / _POOL_CONNECTIONS))
        ]
        try:
            yield clients
        finally:
            self.budget.keep()
            for client in clients:
                await client.close()


def _key_of(options: OpenAIOptions) -> str:
    if options.base_url is None and _URL in os.environ:
        raise ConfigError(
            f"actor.base_url is not given, but {_URL} is set: a run reads its config alone; write it there"
        )
    key = read_key()
    if key == NO_KEY and options.base_url is None:
        raise ConfigError(f"actor.kind openai: set the environment variable {KEY}, or actor.base_url to your server")
    return key
