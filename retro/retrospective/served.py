"""A policy that samples through an OpenAI-compatible server, with N reflections in one request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from retro.config import ConfigError, ModelSection
from retro.models.rounds import all_of
from retro.models.text import encode_response, end_tokens
from retro.retrospective.drafting import Draft, as_reflection, first_sentence, has_sentence_end
from retro.retrospective.encoding import Encoder
from retro.retrospective.revising import revised
from retro.types import Reflection, ReflectionRequest, Sampling, Usage, derive_seed
from retro.wire.answers import Answer, Choice
from retro.wire.client import Client
from retro.wire.credentials import read_key
from retro.wire.failures import Problem, Words
from retro.wire.request import RequestSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIMEOUT_SECONDS = 600.0
"""For one try at a request: a server on a laptop's CPU writes a group of reflections slowly."""
MAX_RETRIES = 5
_CONCURRENCY = 256
_REFUSALS = (Problem.TOO_LONG, Problem.PARAMETER, Problem.REFUSED)


class ModelServerError(ConfigError):
    """The server that has the model gives no reflection."""


class RefusedError(ModelServerError):
    """The server refuses this request, with a reason."""


def served_client(section: RequestSection, start: str) -> Client:
    """A client for a server that has a retrospective model loaded.

    Args:
        section: The server and its model. The key is read from ``OPENAI_API_KEY``, if there is one.
        start: The command that starts such a server, for error messages.

    Raises:
        ConfigError: if the URL is not valid or holds a password, or if the key cannot be sent.
    """
    start = f"start it with:\n  {start}"
    another = f"{section.model!r} was asked for; --server-model (server_model) names another"
    words = Words(
        f"server {section.base_url}",
        url="server",
        errors={**dict.fromkeys(Problem, ModelServerError), **dict.fromkeys(_REFUSALS, RefusedError)},
        remedies={
            Problem.NOBODY: start,
            Problem.NO_ANSWER: start,
            Problem.REDIRECT: "give the URL that it redirects to",
            Problem.MODEL: f"give server_model, the name of one that it has, or serve it: {start}",
            Problem.TOO_LONG: "its context must hold model.max_prompt_tokens and model.max_new_tokens",
            Problem.REFUSED: another,
        },
    )
    return Client(section, words, read_key(), TIMEOUT_SECONDS, MAX_RETRIES, _CONCURRENCY)


class ServedPolicy:
    """Samples reflections with a model behind a server, from the same prompts as the local policy.

    Args:
        client: Sends the requests.
        encoder: Makes the prompts, with the base's tokenizer; its section says how reflections are sampled.
        source: The ``source`` of the reflections.
    """

    def __init__(self, client: Client, encoder: Encoder, source: str) -> None:
        self._client = client
        self._encoder = encoder
        self._source = source
        self._begin = "" if client.form.endpoint == "chat" else missing_begin(encoder.tokenizer)

    async def check(self) -> None:
        """Ask for one token.

        Raises:
            ModelServerError: if the server does not answer, does not have the model, or cannot complete such prompts.
        """
        await self._client.ask("Hello", Sampling(temperature=1.0, max_tokens=1), retries=1)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections from one request; for those that the server leaves out, from single requests.

        Raises:
            PromptTooLongError: if the trajectory does not fit, even shortened.
            ModelServerError: if the server does not answer, or refuses.
            QuotaError: if it asks every caller to wait for more than two minutes.
        """
        return await self._respond(self._encoder.text(request.episode), request.count, request.seed)

    async def revise(self, request: ReflectionRequest, draft: Reflection) -> tuple[Reflection, Usage]:
        """Rewrite a reflection (:class:`~retro.retrospective.revising.RevisingReflector`). Raises like :meth:`reflect`.

        It works in a chat, too: critique and revision are asked for in new chats.
        """
        return await revised(self._encoder, self._respond, request, draft)

    @contextmanager
    def drafting(self, request: ReflectionRequest) -> Iterator[ServedDrafting]:
        """Write about the request's episode a sentence at a time (:class:`~retro.retrospective.drafting.Drafting`).

        Raises:
            PromptTooLongError: if the episode does not fit.
            ConfigError: if the server is asked in a chat, which cannot continue a text.
        """
        if self._client.form.endpoint == "chat":
            raise ConfigError(
                f"server {self._client.form.base_url}: its model is asked in a chat, which cannot continue a "
                "reflection sentence by sentence, as the sampler backtrack does: use the sampler best_of, or load the "
                "model into this process"
            )
        text = self._encoder.text(request.episode)
        prompt_tokens = len(self._encoder.encode(text))
        yield ServedDrafting(self._answers, self._encoder, self._begin + text, prompt_tokens, self._source)

    async def _respond(self, text: str, count: int, seed: int) -> list[Reflection]:
        answers = await self._answers(self._begin + text, count, seed, self._encoder.section.max_new_tokens)
        prompt_tokens = len(self._encoder.encode(text))
        written = [reflection for answer in answers for reflection in self._read(answer, prompt_tokens)]
        return [replace(reflection, index=index) for index, reflection in enumerate(written)]

    async def _answers(self, prompt: str, count: int, seed: int, most: int) -> list[Answer]:
        """Answers with ``count`` choices in total: one answer, and a further one for each choice that it lacks.

        Args:
            most: The tokens of a choice, at most.
        """
        answers: list[Answer] = []
        try:
            answers.append(await self._client.ask(prompt, self._sampling(seed, 0, most), count))
        except RefusedError:
            if count == 1:
                raise  # for count > 1 the server may only refuse n; otherwise it refuses the single requests, too
        given = sum(len(answer.choices) for answer in answers)
        singles = (self._client.ask(prompt, self._sampling(seed, index, most)) for index in range(given, count))
        return [*answers, *await all_of(singles)]

    def _sampling(self, seed: int, index: int, most: int) -> Sampling:
        section = self._encoder.section
        return Sampling(section.temperature, section.top_p, most, seed=derive_seed(seed, index))

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


class ServedDrafting:
    """A :class:`~retro.retrospective.drafting.Drafting` by a server that completes texts.

    Each request holds the prompt and the draft behind it, which the server reads again unless it caches prefixes; the
    usage counts both. A server does not say whether a stop string or the model ended an answer, so each request asks
    for a whole continuation, of which only the first sentence is kept. All of it is counted.
    """

    def __init__(
        self,
        ask: Callable[[str, int, int, int], Awaitable[list[Answer]]],
        encoder: Encoder,
        prompt: str,
        prompt_tokens: int,
        source: str,
    ) -> None:
        self._ask, self._encoder = ask, encoder
        self._prompt, self._prompt_tokens = prompt, prompt_tokens
        self._source = source

    async def extend(self, draft: Draft, count: int, seed: int) -> tuple[list[Draft], Usage]:
        room = self._encoder.section.max_new_tokens - len(draft.ids)
        answers = await self._ask(self._prompt + draft.text, count, seed, room)
        usage = sum((self._usage(answer, draft) for answer in answers), Usage())
        return [self._continued(draft, choice) for answer in answers for choice in answer.choices], usage

    def reflection(self, draft: Draft) -> Reflection:
        return as_reflection(draft, self._source, self._prompt_tokens)

    def _continued(self, draft: Draft, choice: Choice) -> Draft:
        text = draft.text + first_sentence(choice.text)
        ids = self._tokens(text)
        if not has_sentence_end(choice.text):
            return Draft(text, ids, choice.finish_reason)
        return Draft(text, ids, "length" if len(ids) >= self._encoder.section.max_new_tokens else None)

    def _usage(self, answer: Answer, draft: Draft) -> Usage:
        if answer.counted:
            return answer.usage
        written = sum(len(self._tokens(choice.text)) + 1 for choice in answer.choices)
        return Usage(self._prompt_tokens + len(draft.ids), written)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(encode_response(self._encoder.tokenizer, text)[:-1])


def request_section(
    url: str, model: str, section: ModelSection, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> RequestSection:
    """Requests with which a server samples like the local model.

    They name the arguments of the chat template, and the tokens that end a turn besides the tokenizer's end token,
    which is the only one that a server stops at by itself.

    Args:
        chat: Whether the server puts a chat template around the prompt; otherwise it completes the text.
    """
    ends = sorted(end_tokens(tokenizer) - {tokenizer.eos_token_id})
    extra: dict[str, Any] = {"stop_token_ids": ends} if ends else {}
    if chat and section.chat_template_kwargs:
        extra["chat_template_kwargs"] = section.chat_template_kwargs
    endpoint = "chat" if chat else "completions"
    return RequestSection.model_validate({"model": model, "base_url": url, "endpoint": endpoint, "extra_body": extra})


def missing_begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The begin token, if the tokenizer has one but does not put it before a text by itself, as on a server."""
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id in tokenizer.encode("a"):
        return ""
    return str(tokenizer.bos_token)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` as a sum of integers in proportion to the positive ``weights``, each less than 1 off."""
    bounds = [total * reached // sum(weights) for reached in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(bounds)]
