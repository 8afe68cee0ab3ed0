"""The config of a run: YAML in, unknown keys refused, dotted overrides on top.

Importable without torch. ``load_config(path, overrides)`` is the one way in; ``RunConfig.dump()`` the one way out, and
what it writes runs again as it is. A section with a ``kind`` is read as that kind's own options (``kinds.py``).
"""

from retro.config.base import (
    ConfigError,
    Decay,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Speed,
    deciding,
)
from retro.config.evaluation import ArmSection, EvaluateSection, ExportSection, SamplerSection
from retro.config.kinds import POINTS, Kind, KindSection, OneOf, Point, build, parse_section, resolve
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
    BufferSection,
    CollectSection,
    EnvironmentSection,
    MemorySection,
    RunnerSection,
    TaskCounts,
)
from retro.config.run import RunConfig
from retro.config.training import (
    AdamSection,
    FixedKlSection,
    OptimiserSection,
    PolicySection,
    Rating,
    RewardSection,
    RewardTermSection,
    SampledPolicySection,
    SftSection,
)
from retro.config.view import ConfigView, Leaf, UndeclaredKeyError, declared, leaves, view_of

__all__ = [
    "POINTS",
    "ActorSection",
    "AdamSection",
    "ArmSection",
    "BudgetSection",
    "BufferSection",
    "CheckpointSection",
    "CollectSection",
    "ConfigError",
    "ConfigView",
    "Decay",
    "EnvironmentSection",
    "EvaluateSection",
    "ExportSection",
    "FixedKlSection",
    "Fraction",
    "GeneratorSection",
    "Kind",
    "KindSection",
    "Leaf",
    "LoraSection",
    "MemorySection",
    "ModelSection",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OneOf",
    "OptimiserSection",
    "Point",
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
    "SftSection",
    "Speed",
    "TaskCounts",
    "TrainedModelSection",
    "UndeclaredKeyError",
    "build",
    "deciding",
    "declared",
    "leaves",
    "load_config",
    "parse_config",
    "parse_section",
    "resolve",
    "view_of",
]
