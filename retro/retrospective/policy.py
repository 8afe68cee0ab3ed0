"""The retrospective model as a reflector, which samples reflections on a failed episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from retro.config import ModelSection
from retro.models.limits import with_prompt_limit
from retro.models.rounds import Rounds
from retro.models.text import decode_response
from retro.prompts import Prompts
from retro.retrospective.encoding import Encoder
from retro.retrospective.generator import EngineGenerator, Generator
from retro.types import Reflection, ReflectionRequest, Sampling, Usage, derive_seed

if TYPE_CHECKING:
    from retro.models.adapters import SharedBase


@dataclass(frozen=True, slots=True)
class _Question:
    prompt: list[int]
    count: int
    seed: int


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
        prompt = self._encoder.prompt(request.episode)
        return await self._rounds.submit(_Question(prompt, request.count, request.seed))

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
