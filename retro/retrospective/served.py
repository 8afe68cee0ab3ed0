"""The policy behind an OpenAI-compatible server: N reflections in one request, everything else as the local one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from retro.config import ConfigError, ModelSection
from retro.models.rounds import all_of
from retro.models.text import end_tokens
from retro.retrospective.encoding import Encoder
from retro.types import Reflection, ReflectionRequest, Sampling, Usage, derive_seed
from retro.wire.answers import Answer
from retro.wire.client import Client
from retro.wire.credentials import read_key
from retro.wire.failures import Problem, Words
from retro.wire.request import RequestSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIMEOUT_SECONDS = 600.0
"""Of one try at a request: a server on a laptop's CPU writes a group of reflections slowly."""
MAX_RETRIES = 5
_CONCURRENCY = 256


class RefusedError(ConfigError):
    """The server will not answer this request, and said why."""


def served_client(section: RequestSection, start: str) -> Client:
    """A client for a server that has a retrospective model loaded.

    Args:
        section: The server and its model. The key is read from ``OPENAI_API_KEY``, if the server wants one.
        start: The command that starts such a server, for error messages.

    Raises:
        ConfigError: for a URL that is not one or holds a password, or a key that cannot be sent.
    """
    start = f"start it with:\n  {start}"
    another = f"{section.model!r} was asked for; --server-model (server_model) names another"
    words = Words(
        f"server {section.base_url}",
        url="server",
        errors=dict.fromkeys((Problem.TOO_LONG, Problem.PARAMETER, Problem.REFUSED), RefusedError),
        remedies={
            Problem.NOBODY: start,
            Problem.NO_ANSWER: start,
            Problem.REDIRECT: "give the URL that answers by itself",
            Problem.MODEL: f"give server_model, the name of one that it has, or serve it: {start}",
            Problem.TOO_LONG: "its context must hold model.max_prompt_tokens and model.max_new_tokens",
            Problem.REFUSED: another,
        },
    )
    return Client(section, words, read_key(), TIMEOUT_SECONDS, MAX_RETRIES, _CONCURRENCY)


class ServedPolicy:
    """Samples reflections with a model behind a server, from the same prompts as the local policy.

    Args:
        client: Asks the model.
        encoder: Makes the prompts, with the base's tokenizer; its section says how reflections are sampled.
        source: What the reflections say of where they come from.
    """

    def __init__(self, client: Client, encoder: Encoder, source: str) -> None:
        self._client = client
        self._encoder = encoder
        self._source = source
        self._begin = "" if client.form.endpoint == "chat" else missing_begin(encoder.tokenizer)

    async def check(self) -> None:
        """Ask for one token.

        Raises:
            ConfigError: if the server is not there, does not know the model, or cannot complete prompts of its kind.
        """
        await self._client.ask("Hello", Sampling(temperature=1.0, max_tokens=1), retries=1)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections from one request; those that the server leaves out are asked for one by one.

        Raises:
            PromptTooLongError: if the trajectory does not fit, even shortened.
            ConfigError: if the server cannot be asked, or refuses.
            QuotaError: if it asks to wait for more than two minutes.
        """
        text = self._encoder.text(request.episode)
        answers = await self._answers(self._begin + text, request.count, request.seed)
        prompt_tokens = len(self._encoder.encode(text))
        written = [reflection for answer in answers for reflection in self._read(answer, prompt_tokens)]
        return [replace(reflection, index=index) for index, reflection in enumerate(written)]

    async def _answers(self, prompt: str, count: int, seed: int) -> list[Answer]:
        """Answers with ``count`` choices together: one, or one and a further one for each choice that it lacks."""
        answers: list[Answer] = []
        try:
            answers.append(await self._client.ask(prompt, self._sampling(seed, 0), count))
        except RefusedError:
            if count == 1:
                raise  # else it may be n that is refused; if not, one alone is refused as well
        given = sum(len(answer.choices) for answer in answers)
        singles = (self._client.ask(prompt, self._sampling(seed, index)) for index in range(given, count))
        return [*answers, *await all_of(singles)]

    def _sampling(self, seed: int, index: int) -> Sampling:
        section = self._encoder.section
        return Sampling(section.temperature, section.top_p, section.max_new_tokens, seed=derive_seed(seed, index))

    def _read(self, answer: Answer, prompt_tokens: int) -> list[Reflection]:
        written = [
            Reflection(choice.text.strip(), self._source, finish_reason=choice.finish_reason)
            for choice in answer.choices
        ]
        completions = [len(self._encoder.response(reflection)) for reflection in written]
        if answer.counted:
            prompt_tokens, completions = answer.usage.prompt_tokens, shares(answer.usage.completion_tokens, completions)
        return [
            replace(reflection, usage=Usage(prompt_tokens, tokens))
            for reflection, tokens in zip(written, completions, strict=True)
        ]


def request_section(
    url: str, model: str, section: ModelSection, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> RequestSection:
    """The requests that make a server do as the local model does.

    Beside the prompt, a server must be told the arguments of the chat template, and where a turn ends if that is not
    the tokenizer's end token, the only one that the server knows by itself.

    Args:
        chat: Whether the server puts a chat template around the prompt; else it completes the text.
    """
    ends = sorted(end_tokens(tokenizer) - {tokenizer.eos_token_id})
    extra: dict[str, Any] = {"stop_token_ids": ends} if ends else {}
    if chat and section.chat_template_kwargs:
        extra["chat_template_kwargs"] = section.chat_template_kwargs
    endpoint = "chat" if chat else "completions"
    return RequestSection.model_validate({"model": model, "base_url": url, "endpoint": endpoint, "extra_body": extra})


def missing_begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The begin token, if the tokenizer has one that it does not put before a text by itself, as a server lets it."""
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id in tokenizer.encode("a"):
        return ""
    return str(tokenizer.bos_token)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts that are proportional to ``weights`` (positive), each less than one off."""
    bounds = [total * reached // sum(weights) for reached in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(bounds)]
