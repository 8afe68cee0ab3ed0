"""Arms: ways of playing that are evaluated. An arm = policy + memory + sampler + actor + retries + attempts.

Nothing here loads a model, so ``retro run --dry-run`` can check and describe the arms of a config.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from retro.artifacts import digest_model, digest_parts, digest_path
from retro.config import ActorSection, ConfigError, MemorySection, RunConfig, SamplerSection, build, deciding, resolve
from retro.envs import deciding_options, played_environments
from retro.evaluation.locate import reward_model, stage_adapter
from retro.evaluation.records import FORMAT
from retro.evaluation.roles import Description, Parts, Role, Writer
from retro.evaluation.sources import Written
from retro.memory.bank import BankFacts, bank_of, identity
from retro.prompts import PromptLibrary
from retro.retrospective.adapter_files import find_adapter

MODELS = frozenset({Writer.BASE, Writer.ADAPTER})
"""Writers whose reflections are sampled: a sampler can choose among them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who writes an arm's reflections and, if that is an adapter, where it comes from."""

    writer: Writer
    name: str
    """``sft``, ``ppo-env``; for a path, its run and stage."""
    stage: str | None = None
    """The stage of this run that trained the adapter."""
    path: str | None = None
    """The run, stage, checkpoint or adapter folder, unless the adapter is this run's own."""
    step: int | None = None
    """The training step of a checkpoint."""

    @property
    def source(self) -> str:
        """The ``source`` of its reflections."""
        return self.name if self.step is None else f"{self.name}@{self.step}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of playing. Arms with equal parts play equal episodes."""

    name: str
    policy: Policy
    memory: MemorySection
    sampler: SamplerSection
    actor: ActorSection
    retries: ActorSection
    """The actor of the second and all later attempts."""
    attempts: int
    advice: int = 0
    """How often the actor may ask for a reflection in the middle of an episode."""

    @property
    def takes_the_first(self) -> bool:
        """Whether the policy's first reflection is used as it is."""
        return self.sampler.kind == "first"

    @property
    def rewrites(self) -> bool:
        """Whether the sampler has the policy rewrite its reflections, by prompts that no other arm uses."""
        return getattr(resolve("sampler", self.sampler.chosen), "rewrites", False)


def describe(arm: Arm, config: RunConfig) -> Description:
    """The arm's parts and role, as ``results.json`` keeps them."""
    parts = Parts(
        policy=asdict(arm.policy),
        memory=deciding(arm.memory),
        sampler=deciding(arm.sampler),
        actor=deciding(arm.actor),
        attempts=arm.attempts,
    )
    if arm.retries != arm.actor:
        parts["retries"] = deciding(arm.retries)
    if arm.advice:
        parts["advice"] = arm.advice
    return Description(role=str(_role(arm, config.evaluate.attempts)), parts=parts)


def adapter_of(policy: Policy, config: RunConfig) -> Path | None:
    """The folder of the policy's adapter, or None if the policy has none.

    Raises:
        ConfigError: if the stage is not finished, or if there is no adapter at the path.
    """
    if policy.path is not None:
        return find_adapter(Path(policy.path))
    if policy.stage is None:
        return None
    adapter = stage_adapter(config, policy.stage)
    if adapter is None:
        raise ConfigError(
            f"evaluate.arms: {policy.name!r} needs the {policy.stage} stage of {config.run_dir}; first: "
            f"retro {policy.stage} CONFIG"
        )
    return adapter


def check_models(arm: Arm, config: RunConfig) -> None:
    """Refuse an arm if the run lacks one of its models.

    Raises:
        ConfigError: naming the arm and the command that makes what is missing.
    """
    adapter_of(arm.policy, config)
    if reward_model(config) is None:
        try:  # the sampler itself knows whether it can do without scores
            build(arm.sampler, policy=Written(lambda task: "", arm.policy.source), scorer=None)
        except ConfigError as error:
            raise ConfigError(
                f"evaluate.arms: {arm.name!r} needs the reward model of {config.run_dir} ({error}); first: "
                "retro reward CONFIG"
            ) from None


def prompts_digest(config: RunConfig) -> str:
    """Digest of the prompt templates that the arms play with."""
    return PromptLibrary.from_section(config.environment).digest(played_environments(config.environment))


def revising_digest(config: RunConfig) -> str:
    """Digest of the templates by which reflections are rewritten."""
    return PromptLibrary.from_section(config.environment).revising_digest(played_environments(config.environment))


def actor_digests(section: ActorSection) -> dict[str, str]:
    """Digests of an actor's model and of what is loaded beside it."""
    return {"actor": digest_model(section.model), **digest_parts(section)}


def fingerprint(arm: Arm, config: RunConfig, *further: str) -> str:
    """Digest of everything that decides the arm's episodes, except which tasks are played and how often."""
    environment = config.environment
    written = arm.policy.writer in MODELS
    model = config.model.model_dump(mode="json", exclude={"lora", "gradient_checkpointing"}) if written else None
    adapter = adapter_of(arm.policy, config)
    reward = None if arm.takes_the_first else reward_model(config)
    bank = bank_of(arm.memory, config)
    decides = {
        "format": FORMAT,
        "seed": config.seed,
        "environment": [environment.name, deciding_options(environment.name, environment.options)],
        "actor": deciding(arm.actor),
        "actor_model": digest_model(arm.actor.model),
        **digest_parts(arm.actor),
        **({} if arm.retries == arm.actor else {"retries": [deciding(arm.retries), actor_digests(arm.retries)]}),
        "memory": identity(arm.memory),
        **({} if bank is None else {"bank": BankFacts.read(bank).digest, **digest_parts(arm.memory)}),
        "sampler": deciding(arm.sampler),
        "writer": arm.policy.writer,
        "model": model,
        "base": digest_model(config.model.base, config.model.revision) if model else None,
        "adapter": digest_path(adapter) if adapter else None,
        "reward": reward.digest if reward else None,
        "prompts": prompts_digest(config),
        **({"revising": revising_digest(config)} if arm.rewrites else {}),
        **({"advice": arm.advice} if arm.advice else {}),
        "further": further,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _role(arm: Arm, most: int) -> Role:
    match arm.policy.writer:
        case Writer.NONE if arm.attempts < most:
            return Role.SINGLE
        case Writer.NONE:
            return Role.RETRY if arm.actor.temperature == arm.retries.temperature == 0 else Role.CONTROL
        case Writer.BASE:
            return Role.UNTRAINED
        case Writer.ADAPTER:
            return Role.IMITATION if arm.policy.stage == "sft" else Role.TRAINED
        case Writer.SHUFFLED:
            return Role.SHUFFLED
        case Writer.ORACLE:
            return Role.CEILING
        case Writer.VAGUE:
            return Role.VAGUE
