"""Stage ``ppo``: improve the policy by the rewards of its reflections, with the algorithm ``ppo.algorithm``.

Reads the buffer's failed episodes (or its ratings) and the supervised adapter; writes ``best/``, ``checkpoint-*/``,
``rollouts/`` and ``samples.jsonl``.
"""

from __future__ import annotations

from contextlib import closing

from retro.artifacts import digest_model, digest_parts, digest_path
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import StoredContexts, contexts
from retro.config import CheckpointSection, ConfigError, RunConfig, build, resolve
from retro.layout import BEST, CHECKPOINT, RunFolder
from retro.memory.bank import bank_inputs
from retro.models.loading import load_tokenizer
from retro.models.sharding import launched_pieces
from retro.retrospective.reward_files import RewardFiles, facts_file
from retro.stage import Stage, Work
from retro.training.examples import encoder_of_run, training_inputs, without_too_long
from retro.types import Split


def policy_keys(config: RunConfig) -> list[str]:
    """The keys that decide the policy. Pairs and the SFT set also depend on how the other stages choose reflections."""
    needs = build(config.ppo).needs
    pairs = ("reward.loss", "reward.rating", "reward.threshold") if "pairs" in needs else ()
    imitated = ("sft.rating", "sft.threshold") if "imitation" in needs else ()
    played = ("environment.name", "environment.options", "actor", "memory", "collect.branch") if _plays(config) else ()
    return ["model", "buffer", "ppo", *pairs, *imitated, *played]


def _plays(config: RunConfig) -> bool:
    """Whether the actor plays: for the reward, or for the guard."""
    return bool(config.ppo.needs & {"retries", "controls"}) or config.ppo.validation_contexts > 0


def policy_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what is read: buffer, base, prompts, sft adapter; the reward model and the actor where needed.

    Raises:
        ConfigError: if the output of an earlier stage is missing, or the algorithm cannot run under this launch.
    """
    section = config.ppo
    if launched_pieces("ppo", config.model) and not resolve("algorithm", section.chosen).in_pieces:
        raise ConfigError(
            f"ppo.algorithm={section.chosen} trains only whole bases: launch it with configs/accelerate/multi-gpu.yaml"
        )
    run = RunFolder(config.run_dir)
    sft = run.sft_adapter
    if not sft.is_dir():
        raise ConfigError(f"ppo starts from the supervised adapter, and {sft} does not exist: run the stage sft first")
    inputs = training_inputs(config, "ppo") | {"sft": digest_path(sft)}
    if "reward_model" in section.needs:
        reward = RewardFiles.of_stage(run.reward)
        if not reward.adapter.is_dir():
            raise ConfigError(
                f"ppo.reward needs the reward model, and {reward.adapter} does not exist: run the stage reward, or "
                "set ppo.reward=environment"
            )
        inputs["reward"] = " ".join(map(digest_path, (reward.adapter, reward.head, facts_file(run.reward))))
    if _plays(config):
        inputs |= digest_parts(config.actor) | bank_inputs(config)
        if isinstance(config.actor, CheckpointSection):
            inputs["actor"] = digest_model(config.actor.model)
    return inputs


def train_policy(config: RunConfig, work: Work) -> None:
    """Train the policy.

    Raises:
        ConfigError: if there is nothing to train on.
    """
    from retro.training.policy.run import PolicyRun  # here: planning a run imports this module

    encoder = encoder_of_run(load_tokenizer(config.model), config)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        train, held_out = (
            StoredContexts(
                buffer,
                without_too_long(
                    contexts(buffer, [split], config.buffer.environments), encoder, f"failed episodes of {split} tasks"
                ),
            )
            for split in (Split.TRAIN, Split.VALIDATION)
        )
        if not train:
            raise ConfigError(
                f"ppo: {buffer} has no failed episode of a train task to reflect on within model.max_prompt_tokens"
            )
        with closing(PolicyRun(config, work, train, held_out)) as run:
            build(config.ppo).train(run)
    work.output("best", work.folder / BEST)
    work.output("last", work.folder / f"{CHECKPOINT}{config.ppo.steps}")


STAGE = Stage(
    name="ppo",
    folder="ppo",
    reads=("collect", "memory", "sft", "reward"),
    keys=policy_keys,
    not_deciding=("environment.name", "environment.prompts"),
    inputs=policy_inputs,
    run=train_policy,
    trains=True,
)
