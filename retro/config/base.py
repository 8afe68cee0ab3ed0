"""The base class of config sections, number types, and the mark of keys that change speed only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A config that cannot be run: the message names the file, the key and the remedy."""


class Speed:
    """Marks a key that changes how fast or at what cost a result is reached, never the result itself:
    ``concurrency: Annotated[PositiveInt, Speed] = 256``. A finished stage stays up to date when such a key changes."""


class Recall:
    """Marks a key of a memory that learns across tasks: it changes what is recalled from the bank, never what is
    learnt. Arms that differ from the run's memory in such keys alone play with the run's bank:
    ``shuffled: Annotated[bool, Recall] = False``"""


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values are never changed after they were validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def deciding(section: Section) -> dict[str, Any]:
    """The values of ``section`` that decide a result, as plain JSON: without the keys that are marked ``Speed``."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if Speed in field.metadata:
            del values[name]
        else:
            values[name] = _deciding(getattr(section, name), values[name])
    return values


def _deciding(value: Any, dumped: Any) -> Any:
    if isinstance(value, Section):
        return deciding(value)
    if isinstance(value, (list, tuple)):
        return [_deciding(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped
