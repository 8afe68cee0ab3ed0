"""The actor behind any OpenAI-compatible endpoint: OpenAI's own, vLLM, llama.cpp, Ollama, a proxy."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from retro.config import ActorSection, ConfigError
from retro.types import ActorError, Completion, Prompt, Sampling, Usage

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

KEY = "OPENAI_API_KEY"
_NO_KEY = "none"
"""Sent to a server of one's own when no key is set: the protocol wants one, such servers ignore it."""
_MISTAKES = {401: f"the key in {KEY} was refused", 403: f"the key in {KEY} may not use it", 404: "no such model or URL"}
"""Statuses that every further call would meet too: the run stops instead of reporting one episode after another."""
_MAX_ERROR_CHARS = 500
_SEED_RANGE = 2**31
"""Some servers take 32-bit seeds only."""


class OpenAIActor:
    """Asks ``section.model`` for chat completions. Timeouts, rate limits and server errors are retried by the SDK.

    Results are as deterministic as the server: seeds are sent with every call.

    Args:
        section: The config; ``base_url`` None means OpenAI's own endpoint. The key is read from ``OPENAI_API_KEY``.
        timeout_seconds: Of one request.
        max_retries: After it, with the SDK's exponential waiting.

    Raises:
        ConfigError: if OpenAI's own endpoint is asked for and there is no key.
    """

    def __init__(self, section: ActorSection, timeout_seconds: float = 120.0, max_retries: int = 6) -> None:
        key = os.environ.get(KEY, "")
        if not key and section.base_url is None:
            raise ConfigError(
                f"actor.kind openai: set the environment variable {KEY}, or actor.base_url to your server"
            )
        self._key = key or _NO_KEY
        self._section = section
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._client: tuple[asyncio.AbstractEventLoop, AsyncOpenAI] | None = None

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``; a plain text is sent as one user message.

        Raises:
            ActorError: if this call failed for good (after the retries), or was refused (a prompt too long, say).
            ConfigError: if every call would fail: a refused key, an unknown model or URL.
        """
        from openai import APIError
        from openai.types.chat import ChatCompletion

        messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        stop: Any = {"stop": list(sampling.stop)} if sampling.stop else {}
        try:
            answer: object = await self._connected().chat.completions.create(
                model=self._section.model,
                messages=messages,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed % _SEED_RANGE,
                **stop,
            )
        except APIError as error:
            raise self._explained(error) from None
        if not isinstance(answer, ChatCompletion):
            raise ConfigError(f"{self._name}: answers, but not with chat completions; does actor.base_url end in /v1?")
        if not answer.choices:
            raise ActorError(f"{self._name}: the answer has no choices")
        choice, usage = answer.choices[0], answer.usage
        return Completion(
            text=choice.message.content or "",
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            usage=Usage(usage.prompt_tokens, usage.completion_tokens) if usage else Usage(),
        )

    @property
    def _name(self) -> str:
        return f"actor {self._section.model!r} at {self._section.base_url or 'api.openai.com'}"

    def _connected(self) -> AsyncOpenAI:
        """The client of the running event loop: its connections die with their loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            from openai import AsyncOpenAI

            client = AsyncOpenAI(
                api_key=self._key,
                base_url=self._section.base_url,
                timeout=self._timeout_seconds,
                max_retries=self._max_retries,
            )
            self._client = (loop, client)
        return self._client[1]

    def _explained(self, error: APIError) -> Exception:
        """What went wrong, without the key: an actor's error for one episode, or the user's mistake."""
        status: int | None = getattr(error, "status_code", None)
        if status in _MISTAKES:
            return ConfigError(f"{self._name}: {_MISTAKES[status]} (HTTP {status})")
        text = str(error).replace(self._key, "***") if self._key != _NO_KEY else str(error)
        return ActorError(f"{self._name}: {type(error).__name__}: {text[:_MAX_ERROR_CHARS]}")
