"""The prompts by which a model criticises and rewrites its own reflection (Self-Refine)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from retro.artifacts import digest_path
from retro.prompts.template import PromptTemplate

CRITIQUE, REVISION = "critique.jinja", "revision.jinja"


class RevisingPrompts:
    """The templates ``revision.jinja`` and ``critique.jinja`` of the first of ``folders`` that has the former.

    Both get ``prompt``, the prompt about the episode, and ``draft``, the reflection; the revision also gets
    ``critique``, the model's answer to the other. Without ``critique.jinja`` a reflection is rewritten without
    criticism, which suits a model that speaks the language of its environment alone.

    Raises:
        ConfigError: for an invalid template (see :mod:`retro.prompts.template`).
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folder = next(folder for folder in folders if (folder / REVISION).is_file())
        self._revision = PromptTemplate(self._folder / REVISION)
        self._critique = PromptTemplate(self._folder / CRITIQUE) if (self._folder / CRITIQUE).is_file() else None

    @property
    def digest(self) -> str:
        """A digest of both files."""
        files = (self._folder / file for file in (CRITIQUE, REVISION))
        return " ".join(digest_path(file) for file in files if file.is_file())

    @property
    def criticises(self) -> bool:
        """Whether the model is asked for a critique before it rewrites."""
        return self._critique is not None

    def critique(self, prompt: str, draft: str) -> str:
        """The prompt that asks what is wrong with a reflection. Raises ValueError if there is none."""
        if self._critique is None:
            raise ValueError(f"{self._folder} has no {CRITIQUE}")
        return self._critique.render(prompt=prompt, draft=draft)

    def revision(self, prompt: str, draft: str, critique: str) -> str:
        """The prompt that asks for a better reflection."""
        return self._revision.render(prompt=prompt, draft=draft, critique=critique)
