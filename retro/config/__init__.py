"""The config of a run: YAML in, unknown keys refused, dotted overrides on top.

Importable without torch. ``load_config(path, overrides)`` is the one way in; ``RunConfig.dump()`` the one way out, and
what it writes runs again as it is. A section with a ``kind`` is read as that kind's own options (``kinds.py``).
"""

from retro.config.base import (
    ConfigError,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Speed,
    deciding,
)
from retro.config.evaluation import ArmSection, EvaluateSection, SamplerSection
from retro.config.kinds import KindSection, build, parse_section, resolve
from retro.config.load import load_config, parse_config
from retro.config.models import (
    CheckpointSection,
    GeneratorSection,
    LoraSection,
    ModelSection,
    TrainedModelSection,
)
from retro.config.playing import (
    ActorSection,
    BudgetSection,
    CollectSection,
    EnvironmentSection,
    MemorySection,
    RunnerSection,
)
from retro.config.run import RunConfig
from retro.config.training import (
    FixedKlSection,
    OptimiserSection,
    PolicySection,
    Rating,
    RewardSection,
    RewardTermSection,
    SampledPolicySection,
)

__all__ = [
    "ActorSection",
    "ArmSection",
    "BudgetSection",
    "CheckpointSection",
    "CollectSection",
    "ConfigError",
    "EnvironmentSection",
    "EvaluateSection",
    "FixedKlSection",
    "Fraction",
    "GeneratorSection",
    "KindSection",
    "LoraSection",
    "MemorySection",
    "ModelSection",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptimiserSection",
    "PolicySection",
    "PositiveFloat",
    "PositiveInt",
    "Rating",
    "RewardSection",
    "RewardTermSection",
    "RunConfig",
    "RunnerSection",
    "SampledPolicySection",
    "SamplerSection",
    "Section",
    "Speed",
    "TrainedModelSection",
    "build",
    "deciding",
    "load_config",
    "parse_config",
    "parse_section",
    "resolve",
]
