"""A client for one model of an OpenAI-compatible server, with retries, rate limits and a budget."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from retro.reading import UnreadableError, parse_json
from retro.types import Prompt, Sampling, Usage
from retro.wire.answers import Answer, MalformedAnswerError, read_answer
from retro.wire.failures import Failure, Problem, Words, failure_of, malformed
from retro.wire.http import http_library, open_client
from retro.wire.limits import RateLimiter
from retro.wire.redaction import shown
from retro.wire.request import RequestForm, RequestSection
from retro.wire.retrying import LONGEST_WAIT_SECONDS, backoff_seconds, spread_seconds

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT_SECONDS = 10.0
_POOL_CONNECTIONS = 32
"""Connections of one SDK client. More would be slow: each request looks at every connection of its pool."""
_SHOWN_MODELS = 20
_NOTHING = Usage()

T = TypeVar("T")


class Limiter(Protocol):
    """Decides when requests start: a :class:`~retro.wire.limits.RateLimiter`, or one that several processes share."""

    async def admit(self, tokens: int) -> None:
        """Wait until a request of about ``tokens`` tokens may start."""
        ...

    def correct(self, reserved: int, used: int) -> None:
        """Count ``used`` tokens instead of ``reserved``."""
        ...

    def hold(self, seconds: float) -> None:
        """Start no request for so long."""
        ...


class Spending(Protocol):
    """Counts what requests cost, and may make them wait."""

    async def reserve(self, estimate: Usage) -> None:
        """Called before a request that will cost about ``estimate`` at most."""
        ...

    def settle(self, estimate: Usage, used: Usage) -> None:
        """Called after each :meth:`reserve`; a request without an answer has used nothing."""
        ...

    def keep(self) -> None:
        """Called when the connections are closed."""
        ...


@dataclass(frozen=True, slots=True)
class _Connection:
    """The connections of one event loop."""

    loop: asyncio.AbstractEventLoop
    opened: AsyncGenerator[list[AsyncOpenAI]]
    """Holds the clients open. The event loop closes its generators at its end, and this one closes the clients."""
    clients: list[AsyncOpenAI]
    free: list[AsyncOpenAI]
    """A client for each request that may still start; the one whose connection was used last is the last."""
    slots: asyncio.Semaphore


class Client:
    """Asks a model for texts. Raises the errors of :class:`~retro.wire.request.RequestForm`.

    Args:
        section: The server, its model, and the form of the requests.
        words: The wording of error messages.
        key: The API key.
        timeout_seconds: For one try at a request, up to the last byte of its answer.
        max_retries: How often a request is repeated after a failure that may pass.
        concurrency: Requests under way at once.
        limiter: Keeps rate limits.
        spending: Counts the costs.
    """

    def __init__(
        self,
        section: RequestSection,
        words: Words,
        key: str,
        timeout_seconds: float,
        max_retries: int,
        concurrency: int,
        limiter: Limiter | None = None,
        spending: Spending | None = None,
    ) -> None:
        self.form = RequestForm(section, words.url, words.prefix)
        self._words = words
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._concurrency = concurrency
        self.limit_by(limiter or RateLimiter(), spending)
        self._connection: _Connection | None = None
        self._answered = False

    def limit_by(self, limiter: Limiter, spending: Spending | None) -> None:
        """Keep these limits, in place of those that the client was made with."""
        self._limiter = limiter
        self._spending = spending

    async def ask(self, prompt: Prompt, sampling: Sampling, count: int = 1, retries: int | None = None) -> Answer:
        """Ask for ``count`` choices; some servers give fewer, but at least one. Each text ends before the first stop
        string.

        Args:
            retries: Instead of ``max_retries``.

        Raises:
            Exception: the class that the words name for the problem, by default ``ConfigError``.
            QuotaError: if the server asks every caller to wait for more than two minutes.
        """
        body = self.form.body(prompt, sampling, count)
        estimate = self.form.estimate(prompt, sampling, count)
        read = partial(read_answer, endpoint=self.form.endpoint, count=count, prompt_tokens=estimate.prompt_tokens)
        key = (sampling.session, sampling.seed)
        answer = await self.exchange(self.form.path, body, read, key, retries, estimate)
        if isinstance(answer, Failure):
            if answer.problem is Problem.MODEL:
                answer = replace(answer, text=await self._without_model(answer))
            raise self._words.error(answer)
        choices = tuple(choice.within(sampling.stop, sampling.max_tokens) for choice in answer.choices)
        return replace(answer, choices=choices)

    async def exchange(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[bytes], T],
        key: tuple[str | int, ...],
        retries: int | None = None,
        estimate: Usage = _NOTHING,
        final: Callable[[Failure], bool] = lambda failure: False,
    ) -> T | Failure:
        """What ``read`` makes of the answer to a POST; the last failure, if no retry helped.

        Args:
            path: Of the request, behind the URL of the section.
            read: Reads an answer. The request is repeated after a ``MalformedAnswerError``.
            key: Seeds the pauses between retries.
            retries: Instead of ``max_retries``.
            estimate: The most that the request can cost.
            final: Which failures a retry does not help, besides those for which this is always so.

        Raises:
            QuotaError: if the server asks every caller to wait for more than two minutes.
        """
        most = self._max_retries if retries is None else retries
        attempt = 0
        while isinstance(outcome := await self._once(path, body, read, estimate), Failure):
            wait = outcome.wait_seconds
            if wait is not None and wait > LONGEST_WAIT_SECONDS:
                raise self._words.wait_error(outcome, wait)
            if wait is not None and outcome.for_all:
                self._limiter.hold(wait)
            if not outcome.again or final(outcome) or attempt == most:
                return outcome
            await asyncio.sleep(backoff_seconds(attempt, *key) if wait is None else spread_seconds(wait, attempt, *key))
            attempt += 1
        return outcome

    async def models(self) -> list[dict[str, Any]] | Failure:
        """The models that the server lists, by ``id``. This costs no tokens; some servers do not answer it."""
        from openai import APIError, HttpxBinaryResponseContent

        connection = await self._connected()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                listed = await connection.clients[0].get("/models", cast_to=HttpxBinaryResponseContent)
            body = parse_json(listed.content, half_surrogates=True)
        except APIError as error:
            return failure_of(error)
        except TimeoutError:
            return Failure(Problem.NO_ANSWER, f"no list of models within {CONNECT_SECONDS:g} s", again=True)
        except UnreadableError as error:
            return Failure(Problem.MALFORMED, f"a list of models that cannot be read: {error}")
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            return Failure(Problem.MALFORMED, "an answer that is not a list of models")
        return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]

    async def aclose(self) -> None:
        """Close the connections now; otherwise the end of the event loop closes them."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.loop is asyncio.get_running_loop():
            await connection.opened.aclose()

    async def _once(self, path: str, body: dict[str, Any], read: Callable[[bytes], T], estimate: Usage) -> T | Failure:
        """Send one request as soon as the concurrency, the budget and the rate limits allow."""
        connection = await self._connected()
        async with connection.slots:
            client = connection.free.pop()
            try:
                if self._spending is not None:
                    await self._spending.reserve(estimate)
                return await self._paid(client, path, body, read, estimate)
            finally:
                connection.free.append(client)

    async def _paid(
        self, client: AsyncOpenAI, path: str, body: dict[str, Any], read: Callable[[bytes], T], estimate: Usage
    ) -> T | Failure:
        used = Usage()
        try:
            await self._limiter.admit(estimate.total)
            outcome = await self._sent(client, path, body, read)
            if isinstance(outcome, Answer):
                used = outcome.usage
                self._limiter.correct(estimate.total, used.total)
            return outcome
        finally:
            if self._spending is not None:
                self._spending.settle(estimate, used)

    async def _sent(
        self, client: AsyncOpenAI, path: str, body: dict[str, Any], read: Callable[[bytes], T]
    ) -> T | Failure:
        """Send the request now. No exception of the SDK's is raised on, since those hold the key."""
        from openai import APIError, HttpxBinaryResponseContent

        try:
            response = await client.post(path, cast_to=HttpxBinaryResponseContent, body=body)
        except APIError as error:
            return failure_of(error)
        try:
            answer = read(response.content)
        except MalformedAnswerError as error:
            return malformed(error, self._words, self._answered)
        self._answered = True
        return answer

    async def _without_model(self, failure: Failure) -> str:
        """A message that lists the server's models, or asks whether the URL is right."""
        models = await self.models()
        if isinstance(models, Failure):
            return f"{failure.text}, and no list of models: does the URL ({self._words.url}) end in /v1?"
        names = ", ".join(shown(model["id"]) for model in models[:_SHOWN_MODELS]) or "none"
        more = f" and {len(models) - _SHOWN_MODELS:,} more" if len(models) > _SHOWN_MODELS else ""
        return f"has no model {self.form.model!r}; it has: {names}{more}"

    async def _connected(self) -> _Connection:
        """The connections of the running event loop, opened if there are none."""
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            opened = self._open()
            clients = await anext(opened)
            free = [client for client in clients for _ in range(_POOL_CONNECTIONS)][: self._concurrency]
            self._connection = _Connection(loop, opened, clients, free, asyncio.Semaphore(len(free)))
        return self._connection

    @cached_property
    def _certificates(self) -> Any:
        """They take long to read, and belong to no event loop."""
        return http_library().create_ssl_context()

    async def _open(self) -> AsyncGenerator[list[AsyncOpenAI]]:
        from openai import AsyncOpenAI, Timeout

        library, seconds = http_library(), self._timeout_seconds
        limits = library.Limits(max_connections=_POOL_CONNECTIONS, max_keepalive_connections=_POOL_CONNECTIONS)
        timeout = Timeout(None, connect=min(CONNECT_SECONDS, seconds))
        clients = [
            AsyncOpenAI(
                api_key=self._key,
                base_url=self.form.base_url,
                max_retries=0,
                http_client=open_client(
                    seconds, self._words.timeout, verify=self._certificates, limits=limits, timeout=timeout
                ),
            )
            for _ in range(math.ceil(self._concurrency / _POOL_CONNECTIONS))
        ]
        try:
            yield clients
        finally:
            if self._spending is not None:
                self._spending.keep()
            for client in clients:
                await client.close()
