"""The retrospective model as a reflector, which samples reflections on a failed episode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from retro.config import ModelSection
from retro.models.limits import with_prompt_limit
from retro.models.rounds import Rounds
from retro.models.text import decode, decode_response
from retro.prompts import Prompts
from retro.retrospective.drafting import SENTENCE_ENDS, Draft, as_reflection, common_prefix, has_sentence_end
from retro.retrospective.encoding import Encoder
from retro.retrospective.generator import EngineGenerator, Generator, PrefixKeeper
from retro.retrospective.revising import revised
from retro.types import Reflection, ReflectionRequest, Sampling, Usage, derive_seed

if TYPE_CHECKING:
    from retro.models.adapters import SharedBase
    from retro.models.running import Generated

_sessions = itertools.count()


@dataclass(frozen=True, slots=True)
class _Question:
    prompt: list[int]
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Extension:
    ids: list[int]
    """The prompt and the draft behind it."""
    samplings: list[Sampling]


class Policy:
    """Samples reflections from one adapter; requests that are under way at once become one batch.

    Args:
        encoder: Makes the prompts; its section says how reflections are sampled.
        generator: Samples the tokens.
        role: The adapter that writes; None means the bare base.
        source: The ``source`` of the reflections (``base``, ``sft``, ``ppo`` …).
        version: The version of the adapter's weights, for the generator; by default the source.
    """

    def __init__(
        self, encoder: Encoder, generator: Generator, role: str | None, source: str, version: str | None = None
    ) -> None:
        self._encoder = encoder
        self._generator = generator
        self._role = role
        self._source = source
        self._version = version or source
        self._rounds: Rounds[_Question, list[Reflection]] = Rounds(self._answer)
        self._extensions: Rounds[_Extension, list[Generated]] = Rounds(self._extend)

    @classmethod
    def on(
        cls,
        base: SharedBase,
        role: str | None,
        prompts: Prompts,
        section: ModelSection,
        source: str,
        generator: Generator | None = None,
        version: str | None = None,
    ) -> Self:
        """The policy of a config section on a base that is loaded; by default our engine samples."""
        encoder = Encoder(prompts, base.tokenizer, with_prompt_limit(section, base.context))
        return cls(encoder, generator or EngineGenerator(base), role, source, version)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """Sample ``request.count`` reflections, with one prefill of the prompt.

        Raises:
            PromptTooLongError: if the episode does not fit. Other requests of the batch are still answered.
        """
        return await self._respond(self._encoder.text(request.episode), request.count, request.seed)

    async def revise(self, request: ReflectionRequest, draft: Reflection) -> tuple[Reflection, Usage]:
        """Rewrite a reflection (:class:`~retro.retrospective.revising.RevisingReflector`); each prompt is read anew."""
        return await revised(self._encoder, self._respond, request, draft)

    @contextmanager
    def drafting(self, request: ReflectionRequest) -> Iterator[PolicyDrafting]:
        """Write about the request's episode a sentence at a time (:class:`~retro.retrospective.drafting.Drafting`).

        Our engine computes the prompt once and each sentence once, as long as its memory has room. A generator that is
        not a :class:`~retro.retrospective.generator.PrefixKeeper` reads the prompt again for each sentence.

        Raises:
            PromptTooLongError: if the episode does not fit.
        """
        session, generator = f"drafts {next(_sessions)}", self._generator
        keeper = generator if isinstance(generator, PrefixKeeper) else None
        with keeper.conversation(session) if keeper else nullcontext():
            prompt = self._encoder.prompt(request.episode)
            yield PolicyDrafting(self._encoder, self._extensions, prompt, self._source, session, keeper is not None)

    async def _respond(self, text: str, count: int, seed: int) -> list[Reflection]:
        return await self._rounds.submit(_Question(self._encoder.encode(text), count, seed))

    def _extend(self, extensions: list[_Extension]) -> Sequence[list[Generated]]:
        generator = self._generator
        generator.use(self._role, self._version)
        if isinstance(generator, PrefixKeeper):
            return generator.extend([(asked.ids, asked.samplings) for asked in extensions])
        return [
            group
            for asked in extensions
            for group in generator.sample(
                [asked.ids], len(asked.samplings), asked.samplings[0], [[one.seed for one in asked.samplings]]
            )
        ]

    def _answer(self, questions: list[_Question]) -> list[list[Reflection]]:
        """Sample a batch for each count. Usually there is one batch, since the groups of a run have one size."""
        answers: dict[int, list[Reflection]] = {}
        self._generator.use(self._role, self._version)
        for count in sorted({question.count for question in questions}):
            batch = [index for index, question in enumerate(questions) if question.count == count]
            sampled = self._sample([questions[index] for index in batch], count)
            answers.update(zip(batch, sampled, strict=True))
        return [answers[index] for index in range(len(questions))]

    def _sample(self, questions: list[_Question], count: int) -> list[list[Reflection]]:
        section, tokenizer = self._encoder.section, self._encoder.tokenizer
        sampling = Sampling(section.temperature, section.top_p, section.max_new_tokens)
        seeds = [[derive_seed(question.seed, index) for index in range(count)] for question in questions]
        groups = self._generator.sample([question.prompt for question in questions], count, sampling, seeds)
        return [
            [
                Reflection(
                    text=decode_response(tokenizer, generated.ids),
                    source=self._source,
                    index=index,
                    finish_reason=generated.finish_reason,
                    usage=Usage(len(question.prompt), len(generated.ids)),
                )
                for index, generated in enumerate(group)
            ]
            for question, group in zip(questions, groups, strict=True)
        ]


class PolicyDrafting:
    """A :class:`~retro.retrospective.drafting.Drafting` by a local policy. Calls under way at once become one batch."""

    def __init__(
        self,
        encoder: Encoder,
        extensions: Rounds[_Extension, list[Generated]],
        prompt: list[int],
        source: str,
        session: str,
        keeps: bool,
    ) -> None:
        self._encoder, self._extensions = encoder, extensions
        self._prompt, self._source = prompt, source
        self._session, self._keeps = session, keeps
        self._held: list[int] = []

    async def extend(self, draft: Draft, count: int, seed: int) -> tuple[list[Draft], Usage]:
        """See :class:`~retro.retrospective.drafting.Drafting`. Tokens that the session remembers are not read again."""
        section = self._encoder.section
        ids = [*self._prompt, *draft.ids]
        samplings = [
            Sampling(
                section.temperature,
                section.top_p,
                section.max_new_tokens - len(draft.ids),
                SENTENCE_ENDS,
                derive_seed(seed, index),
                self._session,
            )
            for index in range(count)
        ]
        remembered = min(common_prefix(self._held, ids), len(ids) - 1) if self._keeps else 0
        self._held = ids
        written = await self._extensions.submit(_Extension(ids, samplings))
        usage = Usage(len(ids) - remembered, sum(len(generated.ids) for generated in written))
        return [self._continued(draft, generated) for generated in written], usage

    def reflection(self, draft: Draft) -> Reflection:
        return as_reflection(draft, self._source, len(self._prompt))

    def _continued(self, draft: Draft, generated: Generated) -> Draft:
        tokenizer = self._encoder.tokenizer
        ended = generated.finish_reason == "stop" and not has_sentence_end(decode(tokenizer, generated.ids))
        ids = (*draft.ids, *(generated.ids[:-1] if ended else generated.ids))
        full = len(ids) >= self._encoder.section.max_new_tokens
        return Draft(decode(tokenizer, ids), ids, "stop" if ended else "length" if full else None)
