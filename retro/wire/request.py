"""The request to an OpenAI-compatible server, and an estimate of its cost."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from retro.config import ConfigError, Section
from retro.reading import encodable, without_user
from retro.types import Prompt, Sampling, Usage

Endpoint = Literal["chat", "completions"]
OPENAI_URL = "https://api.openai.com/v1"
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_MAX_STOPS = 4
"""The most that OpenAI accepts; the client cuts answers at the others."""
_SEED_RANGE = 2**31
"""Some servers accept only 32-bit seeds."""
_BYTES_PER_TOKEN = 4
"""Roughly, for English text."""
_KEPT = {"model", "messages", "prompt"}
_REFUSED = {"stream": "answers are read whole", "n": "it is written for each call"}


class RequestSection(Section):
    """A server, its model, and the form of requests."""

    model: str
    """What the server calls the model."""
    base_url: str | None = None
    """By default OpenAI's own. The key is read from the environment variable OPENAI_API_KEY, never from a URL."""
    endpoint: Endpoint = "chat"
    """``chat`` puts the server's chat template around the prompt; ``completions`` sends it as it is (base models)."""
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of an answer's tokens; OpenAI's reasoning models accept only the second name."""
    extra_body: dict[str, Any] = {}
    """Added to every request, for parameters of particular servers; ``null`` leaves a parameter out. It must hold no
    secrets, since it is written to ``config.yaml``."""


class RequestForm:
    """Writes the requests of a section.

    Args:
        section: The server, its model and the form.
        url: What messages call ``base_url``: its key in the config, or an option.
        prefix: The prefix of the section's other keys in the config.

    Raises:
        ConfigError: for a ``base_url`` that is not a URL or holds a password, or an ``extra_body`` that repeats other
            keys of the config.
    """

    def __init__(self, section: RequestSection, url: str, prefix: str = "") -> None:
        self._section = section
        self._prefix = prefix
        self.base_url = _checked_url(section.base_url or OPENAI_URL, url)
        self.path = _PATHS[section.endpoint]
        self._left_out = {name for name, value in section.extra_body.items() if value is None}
        self._extra = {name: value for name, value in section.extra_body.items() if value is not None}
        self._check_extra()

    @property
    def url(self) -> str:
        """The whole URL of requests."""
        return self.base_url.rstrip("/") + self.path

    @property
    def endpoint(self) -> Endpoint:
        return self._section.endpoint

    @property
    def model(self) -> str:
        return self._section.model

    def body(self, prompt: Prompt, sampling: Sampling, count: int = 1) -> dict[str, Any]:
        """The JSON of a request for ``count`` choices; in a chat, a plain text is one user message.

        At temperature 0 nothing is drawn, so there is no seed: equal prompts make equal requests.

        Raises:
            ConfigError: for messages to the ``completions`` endpoint.
        """
        body = {
            "model": self._section.model,
            **self._asked(prompt),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,  # even if it is 1: without it, some servers use the model's own default
            self._section.limit_parameter: sampling.max_tokens,
        }
        if sampling.temperature > 0:
            body["seed"] = sampling.seed % _SEED_RANGE
        if sampling.stop:
            body["stop"] = list(sampling.stop[:_MAX_STOPS])
        if count > 1:
            body["n"] = count
        for name in self._left_out:
            body.pop(name, None)
        return body | self._extra

    def estimate(self, prompt: Prompt, sampling: Sampling, count: int = 1) -> Usage:
        """The most that a request can cost, estimated from the prompt's bytes."""
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        return Usage(sum(map(estimated_tokens, texts)), count * sampling.max_tokens)

    def _asked(self, prompt: Prompt) -> dict[str, Any]:
        if isinstance(prompt, str):
            text = encodable(prompt)
            if self._section.endpoint == "completions":
                return {"prompt": text}
            return {"messages": [{"role": "user", "content": text}]}
        if self._section.endpoint == "completions":
            raise ConfigError(
                f"{self._prefix}endpoint completions takes plain text, and the prompt is messages: use chat"
            )
        return {"messages": [{"role": turn["role"], "content": encodable(turn["content"])} for turn in prompt]}

    def _check_extra(self) -> None:
        own = {"temperature", "top_p", "seed", "stop", self._section.limit_parameter}
        key = f"{self._prefix}extra_body"
        for name in self._section.extra_body:
            if name in _KEPT:
                raise ConfigError(f"{key}: {name!r} is written for each call; leave it out")
            if name in self._extra and name in own:
                raise ConfigError(
                    f"{key}: {name!r} has its own key in the config; here it can only be null, which leaves "
                    "it out of requests"
                )
            if name in self._extra and name in _REFUSED:
                raise ConfigError(f"{key}: {name!r} cannot be set: {_REFUSED[name]}")


def estimated_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def _checked_url(url: str, key: str) -> str:
    try:
        parts = urlsplit(url)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        readable = False
    if not readable:
        raise ConfigError(f"{key} {without_user(url)!r}: not a URL; one is http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{key} {without_user(url)!r}: a user or a password in a URL would be written to config.yaml and "
            "logs: take them out, and set the environment variable OPENAI_API_KEY"
        )
    return url
