"""The config of a run: YAML with dotted overrides, in which unknown keys are errors.

``load_config(path, overrides)`` reads a config, and ``RunConfig.dump()`` writes one that runs again as it is. A section
with a ``kind`` holds that kind's own options (``kinds.py``). This package does not import torch.
"""

from retro.config.base import (
    ConfigError,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Recall,
    Section,
    Speed,
    deciding,
)
from retro.config.evaluation import ArmSection, EvaluateSection, SamplerSection
from retro.config.kinds import KindSection, OneOf, build, find_named, lacks_module, parse_section, resolve
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
    Branch,
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
    "Branch",
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
    "OneOf",
    "OptimiserSection",
    "PolicySection",
    "PositiveFloat",
    "PositiveInt",
    "Rating",
    "Recall",
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
    "find_named",
    "lacks_module",
    "load_config",
    "parse_config",
    "parse_section",
    "resolve",
]
