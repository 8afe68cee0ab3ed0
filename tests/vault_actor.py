"""The guesser of ``small_world`` as a kind of actor, which another process can make, and which can fail there."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from small_world import Guesser

from retro.config import ConfigError, Section
from retro.types import Completion, Prompt, Sampling


class StrangeError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} {right}")


class VaultActor(Guesser):
    """It writes down in ``folder`` what happened."""

    class Options(Section):
        folder: str
        deaths: int = 0
        """How many processes kill themselves."""
        dies_after: int = 4
        """The number of calls before that: by default in the middle of an episode."""
        fails: str = ""
        """How it fails: at the start (``start``), by what it raises, or by never answering (``hangs``)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.folder, self.failure = Path(options.folder), options.fails
        self.deaths, self.dies_after = options.deaths, options.dies_after
        if self.failure == "start":
            raise ConfigError("actor.model: no such folder")
        (self.folder / f"process-{os.getpid()}").touch()
        if (self.folder / "open").exists():
            self.open = os.open(self.folder / "open", os.O_WRONLY)  # until the process ends

    @classmethod
    def from_options(cls, options: Options, device: object, ledger: Path | None) -> VaultActor:
        return cls(options)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        match self.failure:
            case "setting":
                raise ConfigError("actor.model: it has moved")
            case "bug":
                raise ValueError("not what was expected")
            case "strange":
                raise StrangeError("cannot", "travel")
            case "hangs":
                try:
                    await asyncio.Event().wait()
                finally:
                    (self.folder / "stopped").touch()
        if self.calls == self.dies_after and self._dies():
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().complete(prompt, sampling)

    def _dies(self) -> bool:
        for number in range(self.deaths):
            try:
                (self.folder / f"death-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False
