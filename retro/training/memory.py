"""Stage ``memory``: fold the finished train episodes of the buffer into the bank of a memory that learns across tasks.

The retries and the guard of ppo, the evaluation and the export play with this bank; the collection plays without one. A
run whose memory does not learn across tasks has no such stage.
"""

from __future__ import annotations

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig
from retro.memory.bank import CONTENT, FACTS, FORMAT, fold_bank, learns
from retro.stage import Stage, Work
from retro.types import Split


def memory_inputs(config: RunConfig) -> dict[str, str]:
    """The digest of the buffer, and the format of a bank's facts.

    Raises:
        ConfigError: if the memory of the config does not learn across tasks.
    """
    if not learns(config.memory):
        raise ConfigError(f"memory.kind={config.memory.chosen} does not learn across tasks: there is no bank to write")
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        return {"buffer": buffer.digest(config.buffer.environments), "format": FORMAT}


def fold_memory(config: RunConfig, work: Work) -> None:
    """Fold the train episodes into a bank, in a fixed order, and save it."""
    chosen = config.buffer.environments
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        episodes = [e for e in buffer.episodes(split=Split.TRAIN) if not chosen or e.task.environment in chosen]
    facts = fold_bank(config.memory, episodes, work.folder)
    work.log(
        facts.episodes, bank=facts.digest, entries=facts.entries, bytes=facts.bytes, actor_tokens=facts.actor_tokens
    )
    for name in (FACTS, CONTENT):
        work.output(name, work.folder / name)


STAGE = Stage(
    name="memory",
    folder="memory",
    reads=("collect",),
    keys=("memory", "buffer.environments"),
    not_deciding=("buffer.url",),
    inputs=memory_inputs,
    run=fold_memory,
    applies=lambda config: learns(config.memory),
)
