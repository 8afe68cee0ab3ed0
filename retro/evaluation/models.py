"""The retrospective models behind the arms: one base in memory, an adapter an arm, the reward model for Best-of-N."""

from __future__ import annotations

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
    """Builds the reflector of an arm whose reflections a model writes. Loads the base at the first one."""

    def __init__(self, config: RunConfig, prompts: Prompts) -> None:
        self._config = config
        self._prompts = prompts
        self._base: SharedBase | None = None
        self._scorer: RewardScorer | None = None

    def __call__(self, arm: Arm) -> tuple[Reflector, Candidates | None]:
        """The arm's reflector, and what its Best-of-N sampler asked the reward model.

        Raises:
            AdapterMismatchError: if the adapter was trained on another base.
        """
        if self._base is None:
            self._base = SharedBase.load(self._config.model, resolve_device(self._config.device))
        role = None
        adapter = adapter_of(arm.policy, self._config)
        if adapter is not None:
            role = "policy"
            self._base.load_role(role, adapter, trainable=False)
        policy = Policy.on(
            self._base,
            role,
            self._prompts,
            self._config.model,
            arm.policy.source,
            build(self._config.model.generator, base=self._base),
            version=str(adapter),
        )
        scorer = None if arm.takes_the_first else self._reward_model(self._base)
        candidates = Candidates(scorer) if scorer else None
        reflector: Reflector = build(arm.sampler, policy=policy, scorer=candidates)
        return reflector, candidates

    def _reward_model(self, base: SharedBase) -> RewardScorer | None:
        """None if the run has no reward model."""
        found = reward_model(self._config)
        if self._scorer is None and found is not None:
            section = with_prompt_limit(self._config.model, base.context)
            self._scorer = RewardScorer(Encoder(self._prompts, base.tokenizer, section), RewardModel.load(base, found))
        return self._scorer
