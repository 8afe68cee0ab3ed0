"""The options of a task set are the parameters of its constructor, checked by their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError, validate_call

from retro.reading import problems

C = TypeVar("C", bound=Callable[..., None])

Names = Annotated[Sequence[str], Field(min_length=1)]
"""A list of at least one name."""


def checked(init: C) -> C:
    """Let a task set's constructor raise ``ValueError`` for an option of the wrong type, or out of range.

    Types are strict: ``"6"`` and ``True`` are not whole numbers. The error names the environment, the option and what
    is expected.
    """
    validated = validate_call(config=ConfigDict(strict=True))(init)

    @wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(f"{self.name}: {problems(error)}") from None

    return cast(C, construct)


def chosen(environment: str, option: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The ``names``, in the order of ``known``.

    Raises:
        ValueError: for a name that is not known.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{environment}: {option}: there is no {unknown[0]!r}; there are: {', '.join(known)}")
    return [name for name in known if name in names]
