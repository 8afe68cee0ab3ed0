"""What is sent to an OpenAI-compatible server for one call, and what it may cost."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from retro.config import ConfigError, Section
from retro.types import Prompt, Sampling, Usage

Endpoint = Literal["chat", "completions"]
OPENAI_URL = "https://api.openai.com/v1"
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_MAX_STOPS = 4
"""What OpenAI takes; an answer is cut at the others here."""
_SEED_RANGE = 2**31
"""Some servers take 32-bit seeds only."""
_BYTES_PER_TOKEN = 4
"""Of English text, roughly."""
_KEPT = {"model", "messages", "prompt"}
_REFUSED = {"stream": "answers are read whole", "n": "it is written for each call"}


class RequestSection(Section):
    """Which server is asked, and in what form."""

    model: str
    """What the server calls the model."""
    base_url: str | None = None
    """By default OpenAI's own. The key is read from the environment variable OPENAI_API_KEY, never from here."""
    endpoint: Endpoint = "chat"
    """``chat`` puts the server's chat template around the prompt; ``completions`` sends it as it is (base models)."""
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of an answer's tokens; OpenAI's reasoning models take the second name alone."""
    extra_body: dict[str, Any] = {}
    """Sent with every request as it is, for what only some servers take; ``null`` leaves out what would be sent. No
    secrets: it is written to ``config.yaml``."""


class RequestForm:
    """Writes a section's requests.

    Args:
        section: What they say.
        url: What messages call ``base_url``: its key in the config, or an option.
        prefix: What stands before the section's other keys in the config.

    Raises:
        ConfigError: for a ``base_url`` that is not a URL or that holds a password, or an ``extra_body`` that says again
            what other keys of the config say.
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
        """Where requests go."""
        return self.base_url.rstrip("/") + self.path

    @property
    def endpoint(self) -> Endpoint:
        return self._section.endpoint

    @property
    def model(self) -> str:
        return self._section.model

    def body(self, prompt: Prompt, sampling: Sampling, count: int = 1) -> dict[str, Any]:
        """The JSON of a request; a plain text is one user message of a chat.

        At temperature 0 nothing is drawn, so there is no seed: equal prompts are equal requests.

        Args:
            count: The choices that are asked for.

        Raises:
            ConfigError: for messages to the ``completions`` endpoint.
        """
        body = {
            "model": self._section.model,
            **self._asked(prompt),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,  # also 1: left out, some servers take the model's own default
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
        """What a call will cost at most, by the prompt's bytes."""
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        return Usage(sum(map(estimated_tokens, texts)), count * sampling.max_tokens)

    def _asked(self, prompt: Prompt) -> dict[str, Any]:
        if isinstance(prompt, str):
            text = _encodable(prompt)
            if self._section.endpoint == "completions":
                return {"prompt": text}
            return {"messages": [{"role": "user", "content": text}]}
        if self._section.endpoint == "completions":
            raise ConfigError(
                f"{self._prefix}endpoint completions takes plain text, and the prompt is messages: use chat"
            )
        return {"messages": [{"role": turn["role"], "content": _encodable(turn["content"])} for turn in prompt]}

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
    """About how many tokens a text has."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def _encodable(text: str) -> str:
    """``text`` with a question mark for half a surrogate pair, which no UTF-8 can say."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _checked_url(url: str, key: str) -> str:
    try:
        parts = urlsplit(url)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        readable = False
    if not readable:
        raise ConfigError(f"{key} {_without_user(url)!r}: not a URL; one is http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{key} {_without_user(url)!r}: a user or a password in a URL would be written to config.yaml and "
            "logs: take them out, and set the environment variable OPENAI_API_KEY"
        )
    return url


def _without_user(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.partition('//')[0]}//***@{after}" if at else url
