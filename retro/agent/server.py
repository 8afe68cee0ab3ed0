"""An OpenAI-compatible server that holds a retrospective model: several choices a request, and errors with remedies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retro.actors.answers import MOST_TOKENS, excerpt, most_chars, readable
from retro.actors.credentials import KEY, read_key
from retro.actors.failures import quota_error, redirection
from retro.actors.http import open_client
from retro.actors.openai_request import RequestForm, RequestSection
from retro.actors.redaction import shown
from retro.actors.retrying import LONGEST_WAIT_SECONDS, retry_after_seconds
from retro.config import ConfigError
from retro.reading import UnreadableError, parse_json, problems
from retro.types import Sampling, Usage

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

TIMEOUT_SECONDS = 600.0
"""Of one try at a request, to the last byte of its answer: a server on a laptop's CPU writes a group of reflections
slowly."""
_CONNECT_SECONDS = 10.0
_MAX_RETRIES = 5
"""Of one request, by the SDK: about 15 s of growing pauses, or what the server asks for."""
_MAX_CHARS = 500
_MAX_NAMES = 20
_MAX_LISTED = 10_000
"""Choices or models that are looked at: of more, every one that is wrong would cost an error's memory."""


class RefusedError(ConfigError):
    """The server will not answer this request, and said why."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a model is served; ``model`` None means: as the export says."""

    url: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One text that the model wrote."""

    text: str
    finish_reason: Literal["stop", "length"]

    def within(self, chars: int) -> Choice:
        """The same text, cut where it is longer than its server was asked for."""
        return self if len(self.text) <= chars else Choice(self.text[:chars], "length")


@dataclass(frozen=True, slots=True)
class Answer:
    """The choices of one request, at least one; ``usage`` is their sum, or None where the server does not tell."""

    choices: tuple[Choice, ...]
    usage: Usage | None


class ModelServer:
    """Asks one model of a server.

    Args:
        url: Its base, with ``/v1``. The key is read from ``OPENAI_API_KEY``, if the server wants one.
        model: What the server calls the model.
        chat: Whether the server's chat template is put around prompts; else they are completed as they are.
        start: The command that starts such a server, for error messages.
        extra_body: Sent with every request as it is.

    Raises:
        ConfigError: for a URL that is none or holds a password, or a key that cannot be sent.
    """

    def __init__(
        self, url: str, model: str, chat: bool, start: str, extra_body: Mapping[str, Any] | None = None
    ) -> None:
        endpoint: Literal["chat", "completions"] = "chat" if chat else "completions"
        section = RequestSection(model=model, base_url=url, endpoint=endpoint, extra_body=dict(extra_body or {}))
        try:
            self._form = RequestForm(section)
        except ConfigError as error:
            raise ConfigError(str(error).replace("actor.base_url", "server")) from None
        self._key = read_key()
        self._model = model
        self._start = f"Start it with:\n  {start}"
        self._name = f"server {url}"
        self._connection: tuple[asyncio.AbstractEventLoop, AsyncGenerator[AsyncOpenAI], AsyncOpenAI] | None = None

    async def check(self) -> None:
        """Ask for one token.

        Raises:
            ConfigError: if the server is not there, does not know the model, or cannot complete prompts of its kind.
        """
        await self.ask("Hello", 1, Sampling(temperature=1.0, max_tokens=1), retries=1)

    async def ask(self, prompt: str, count: int, sampling: Sampling, retries: int = _MAX_RETRIES) -> Answer:
        """Up to ``count`` choices, at least one: not every server gives more.

        Raises:
            RefusedError: if the server refuses the request itself: the prompt is too long, ``n`` is not known …
            ConfigError: if it cannot be asked at all, or answers something else than completions.
            QuotaError: if it asks to wait for more than two minutes.
        """
        body = self._form.body(prompt, sampling) | ({"n": count} if count > 1 else {})
        outcome = await self._sent(body, retries)
        if isinstance(outcome, Exception):
            raise outcome
        most = most_chars(sampling.max_tokens)
        return replace(outcome, choices=tuple(choice.within(most) for choice in outcome.choices[:count]))

    async def _sent(self, body: dict[str, object], retries: int) -> Answer | Exception:
        """What came back. Nothing is raised from an exception of the SDK's: those hold the key."""
        from openai import APIConnectionError, APIStatusError, HttpxBinaryResponseContent

        client = await self._connected()
        try:
            response = await client.post(
                self._form.path, cast_to=HttpxBinaryResponseContent, body=body, options={"max_retries": retries}
            )
        except APIStatusError as error:
            return await self._refusal(client, error)
        except APIConnectionError as error:  # timeouts included
            cause = error.__cause__ or error
            return self._mistake(f"no answer ({type(cause).__name__}: {shown(str(cause), _MAX_CHARS)}). {self._start}")
        return self._read(response.content)

    def _read(self, content: bytes) -> Answer | Exception:
        try:
            body = _Body.model_validate(parse_json(content, half_surrogates=True))
        except (UnreadableError, ValidationError) as error:
            problem = problems(error) if isinstance(error, ValidationError) else f"the whole: {error}"
            return self._mistake(f"answers, but not with completions ({problem}): {excerpt(content)}")
        usage = body.usage.read() if body.usage else None
        return Answer(tuple(choice.read() for choice in body.choices), usage)

    async def _refusal(self, client: AsyncOpenAI, error: APIStatusError) -> Exception:
        words = shown(error.response.text, _MAX_CHARS)  # the SDK's text has OpenAI's kind of error alone
        said = f"HTTP {error.status_code}: {words}"
        if 300 <= error.status_code < 400:
            return self._mistake(f"{redirection(error)}: give the URL that answers by itself")
        if error.status_code in (401, 403):
            return self._mistake(f"refuses the key in {KEY} ({said})")
        if error.status_code == 404:
            return self._mistake(await self._unknown_model(client))
        wait = retry_after_seconds(error.response.headers)
        if error.status_code in (429, 503) and wait is not None and wait > LONGEST_WAIT_SECONDS:
            return quota_error(f"{self._name}: {said}", wait)
        if error.status_code >= 500 or error.status_code == 429:
            return self._mistake(said)
        if "context" in said:
            said += "; its context must hold model.max_prompt_tokens and model.max_new_tokens"
        if "model" in words.lower():
            said += f"; {self._model!r} was asked for: --server-model (server_model) names another"
        return RefusedError(f"{self._name}: {said}")

    async def _unknown_model(self, client: AsyncOpenAI) -> str:
        from openai import APIError, HttpxBinaryResponseContent

        try:
            listed = await client.get("/models", cast_to=HttpxBinaryResponseContent)
            models = _Models.model_validate(parse_json(listed.content, half_surrogates=True)).data
        except (APIError, UnreadableError, ValidationError):
            return "answers 404, and lists no models: does the URL end in /v1?"
        names = ", ".join(shown(model.id) for model in models[:_MAX_NAMES]) or "none"
        more = f" and {len(models) - _MAX_NAMES:,} more" if len(models) > _MAX_NAMES else ""
        return (
            f"has no model {self._model!r}; it has: {names}{more}. Give server_model, one of these, or serve it. "
            f"{self._start}"
        )

    def _mistake(self, text: str) -> ConfigError:
        return ConfigError(f"{self._name}: {text}")

    async def _connected(self) -> AsyncOpenAI:
        """The client of the running event loop: connections die with their loop, which closes its generators."""
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection[0] is not loop:
            clients = self._clients()
            self._connection = (loop, clients, await anext(clients))
        return self._connection[2]

    async def _clients(self) -> AsyncGenerator[AsyncOpenAI]:
        from openai import AsyncOpenAI, Timeout

        timeout = Timeout(TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
        http_client = open_client(TIMEOUT_SECONDS, timeout=timeout)
        client = AsyncOpenAI(api_key=self._key, base_url=self._form.base_url, timeout=timeout, http_client=http_client)
        try:
            yield client
        finally:
            await client.close()


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Message(_Strict):
    content: str | None


class _Choice(_Strict):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> _Choice:
        if self.message is None and self.text is None:
            raise ValueError("neither text nor a message")
        return self

    def read(self) -> Choice:
        text = self.message.content if self.message else self.text
        return Choice(readable(text or ""), "length" if self.finish_reason == "length" else "stop")


class _Usage(_Strict):
    prompt_tokens: int | None = Field(default=None, ge=0, le=MOST_TOKENS)
    completion_tokens: int | None = Field(default=None, ge=0, le=MOST_TOKENS)

    def read(self) -> Usage | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return Usage(self.prompt_tokens, self.completion_tokens)


class _Body(_Strict):
    choices: list[_Choice] = Field(min_length=1, max_length=_MAX_LISTED)
    usage: _Usage | None = None


class _Named(_Strict):
    id: str


class _Models(_Strict):
    data: list[_Named] = Field(max_length=_MAX_LISTED)
