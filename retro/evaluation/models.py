"""The retrospective models behind the arms: one base in memory, an adapter for each arm, and the reward model."""

from __future__ import annotations

from functools import cached_property

from retro.config import RunConfig, build
from retro.evaluation.arms import Arm, adapter_of
from retro.evaluation.locate import reward_model
from retro.evaluation.play import Candidates
from retro.models.adapters import SharedBase
from retro.models.limits import with_prompt_limit
from retro.models.loading import resolve_device
from retro.prompts import Prompts
from retro.retrospective.encoding import Encoder
from retro.retrospective.policy import Policy
from retro.retrospective.reward_model import RewardModel, RewardScorer
from retro.types import Reflector


class RetrospectiveArms:
    """Builds the reflector of an arm whose reflections a model writes; the first one loads the base."""

    def __init__(self, config: RunConfig, prompts: Prompts) -> None:
        self._config = config
        self._prompts = prompts

    def __call__(self, arm: Arm) -> tuple[Reflector, Candidates | None]:
        """The arm's reflector, and the reflections that its sampler had the reward model score.

        Raises:
            AdapterMismatchError: if the adapter was trained on another base.
        """
        config, base = self._config, self._base
        adapter = adapter_of(arm.policy, config)
        role = None if adapter is None else "policy"
        if role and adapter:
            base.load_role(role, adapter, trainable=False)
        generator = build(config.model.generator, base=base)
        policy = Policy.on(base, role, self._prompts, config.model, arm.policy.source, generator, version=str(adapter))
        scorer = None if arm.takes_the_first else self._scorer
        candidates = Candidates(scorer) if scorer else None
        reflector: Reflector = build(arm.sampler, policy=policy, scorer=candidates)
        return reflector, candidates

    @cached_property
    def _base(self) -> SharedBase:
        return SharedBase.load(self._config.model, resolve_device(self._config.device))

    @cached_property
    def _scorer(self) -> RewardScorer | None:
        """None if the run has no reward model."""
        found = reward_model(self._config)
        if found is None:
            return None
        section = with_prompt_limit(self._config.model, self._base.context)
        return RewardScorer(Encoder(self._prompts, self._base.tokenizer, section), RewardModel.load(self._base, found))
