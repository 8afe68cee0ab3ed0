"""Stage ``memory``: fold the finished train episodes of the buffer into the bank of a memory that learns across tasks.

The retries and the guard of ppo, the evaluation and the export play with this bank. The collection plays without one,
unless its memory learns between rounds (``collect.round_tasks``): then its last bank is taken. A run whose memory does
not learn across tasks has no such stage.
"""

from __future__ import annotations

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig
from retro.layout import RunFolder
from retro.memory.bank import CONTENT, FACTS, FORMAT, BankFacts, copy_bank, fold_bank, learns
from retro.models.loading import resolve_device
from retro.stage import Stage, Work
from retro.training.curator import curator_inputs, curator_of
from retro.types import Split


def memory_inputs(config: RunConfig) -> dict[str, str]:
    """The digest of the buffer, or of the bank that was learnt online, and the format of a bank's facts.

    Raises:
        ConfigError: if the memory of the config does not learn across tasks, or has not learnt online yet.
    """
    if not learns(config.memory):
        raise ConfigError(f"memory.kind={config.memory.chosen} does not learn across tasks: there is no bank to write")
    if config.collect.round_tasks is not None:
        bank = RunFolder(config.run_dir).online_bank
        if not bank.is_dir():
            raise ConfigError(f"{bank}: no such folder: run the stage collect first, where the memory learns online")
        return {"bank": BankFacts.read(bank).digest, "format": FORMAT}
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        digest = buffer.digest(config.buffer.environments)
    return {"buffer": digest, "format": FORMAT, **curator_inputs(config.memory)}


def fold_memory(config: RunConfig, work: Work) -> None:
    """Fold the train episodes into a bank, in a fixed order, or take the bank that was learnt online."""
    chosen = config.buffer.environments
    if config.collect.round_tasks is not None:
        copy_bank(RunFolder(config.run_dir).online_bank, work.folder)
    else:
        opened = curator_of(config.memory, RunFolder(config.run_dir).curator, resolve_device(config.device))
        with ReplayBuffer(config.buffer_url, create=False) as buffer, opened as ask:
            episodes = (e for e in buffer.episodes(split=Split.TRAIN) if not chosen or e.task.environment in chosen)
            fold_bank(config.memory, episodes, work.folder, ask=ask)
    facts = BankFacts.read(work.folder)
    work.log(
        facts.episodes,
        bank=facts.digest,
        entries=facts.entries,
        bytes=facts.bytes,
        actor_tokens=facts.actor_tokens,
        curator_tokens=facts.curator_tokens,
    )
    for name in (FACTS, CONTENT):
        work.output(name, work.folder / name)


STAGE = Stage(
    name="memory",
    folder="memory",
    reads=("collect",),
    keys=("memory", "buffer.environments", "collect.round_tasks"),
    not_deciding=("buffer.url",),
    inputs=memory_inputs,
    run=fold_memory,
    applies=lambda config: learns(config.memory),
)
