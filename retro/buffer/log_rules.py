"""Where a line of a log says what an episode needs beside its messages: paths of keys, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from retro.config import ConfigError, find_named, lacks_module
from retro.reading import UnreadableError, cut
from retro.ties import exceeds
from retro.types import Split

Facts = Mapping[str, Any]
"""What a line says, by the keys of :class:`FactsForm`."""

_MAY_LACK = "reflection"
"""The one path that a line may lack: a first attempt and a control have no reflection."""
_WANTED = {
    "task": "a text that is not empty, or a number",
    "return": "a number in [0, 1], or true or false",
    "success": "true or false",
    "reflection": "a text",
    "split": "train, validation or test",
    "kind": "a text",
}


class FactsForm(BaseModel):
    """What an episode needs beside its messages; a user's own rule returns these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)] | None = None
    """Attempts at equal tasks belong together; None: the opening is the task."""
    return_: Annotated[float, Field(validation_alias="return", ge=0, le=1)]
    success: bool | None = None
    """None: a return of 1."""
    reflection: Annotated[str | None, AfterValidator(lambda text: text if text and text.strip() else None)] = None
    """What the agent had read about the attempt before; an empty text is none."""
    split: Split | None = None
    kind: str = ""

    @property
    def succeeded(self) -> bool:
        return not exceeds(1, self.return_) if self.success is None else self.success


@dataclass(frozen=True, slots=True)
class LogRule:
    """Where a line says what an episode needs: paths of keys, such as ``metadata.score``, or a function. A key may have
    dots itself, as attributes of traces do.

    A line is a retry of the line before it that has the same task, if that one failed. After a success, a new chain of
    attempts begins. The order of the lines, over all files, is that of the attempts.
    """

    environment: str
    """Names the environment of all episodes, and so the prompts."""
    task: str | None = None
    return_: str = "return"
    success: str | None = None
    reflection: str | None = None
    function: Callable[[dict[str, Any]], Facts | None] | None = None
    """Gets a line, and returns the keys of :class:`FactsForm` instead; None leaves the line out."""

    @property
    def paths(self) -> dict[str, str]:
        """The paths in use, by the key of :class:`FactsForm` that is there; none if there is a function."""
        paths = {"task": self.task, "return": self.return_, "success": self.success, "reflection": self.reflection}
        return {key: path for key, path in paths.items() if path is not None and self.function is None}

    def said(self, line: dict[str, Any]) -> Facts | None:
        """What a line says, unchecked and None where a path leads nowhere; None instead of all to leave the line out.

        Raises:
            UnreadableError: if the function returns something else.
        """
        if self.function is None:
            return {key: _at(line, path) for key, path in self.paths.items()}
        said: Any = self.function(line)
        if said is not None and not isinstance(said, Mapping):
            raise UnreadableError(f"the rule must return a dictionary or None, not {type(said).__name__}")
        return said

    def named_task(self, said: Facts) -> str | None:
        """The task that a line names, even if its other facts are bad; None if its opening is its task.

        Raises:
            UnreadableError: naming the path that it lacks, or what is wrong there.
        """
        name = said.get("task")
        if name is None and "task" not in self.paths:
            return None
        if name is None:
            raise UnreadableError(f"no {self.task}")
        number = isinstance(name, (int, float)) and not isinstance(name, bool) and math.isfinite(name)
        if not number and (not isinstance(name, str) or name == ""):
            raise UnreadableError(self._wrong("task", name))
        return str(name)

    def facts(self, said: Facts) -> FactsForm:
        """What a line says, checked.

        Raises:
            UnreadableError: naming each path that it lacks, and what is wrong at the others.
        """
        lacking = [path for key, path in self.paths.items() if key != _MAY_LACK and said[key] is None]
        if lacking:
            raise UnreadableError("; ".join(f"no {path}" for path in lacking))
        try:
            return FactsForm.model_validate(said)
        except ValidationError as error:
            keys = dict.fromkeys(str(item["loc"][0]) for item in error.errors())
            raise UnreadableError("; ".join(self._wrong(key, said.get(key)) for key in keys)) from None

    def unused_path(self, keys: set[str]) -> str | None:
        """A sentence about a path at which no line has a value, given the ``keys`` that some line has; None if there is
        no such path."""
        for key, path in self.paths.items():
            if key not in keys:
                or_none = ", or leave the option out if no attempt had a reflection" if key == _MAY_LACK else ""
                return f"--{key}: no attempt has a value at {path}, so nothing can be imported: correct it{or_none}"
        return None

    def _wrong(self, key: str, value: Any) -> str:
        if key not in _WANTED:
            return f"{cut(key, 60)}: unknown key"
        return f"{self.paths.get(key, key)} must be {_WANTED[key]}, not {cut(repr(value), 60)}"


def load_rule(target: str) -> Callable[[dict[str, Any]], Facts | None]:
    """The function ``package.module:function``, also of the working folder.

    Raises:
        ConfigError: if there is none.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"--rule {target}: write package.module:function")
    try:
        function = find_named(target)
    except ModuleNotFoundError as error:
        if not lacks_module(error, target):
            raise  # the user's module imports something that is missing: its traceback shows what
        function = None
    if not callable(function):
        raise ConfigError(f"--rule {target}: not found in the working folder or among the installed packages")
    found: Callable[[dict[str, Any]], Facts | None] = function
    return found


def _at(line: Mapping[str, Any], path: str) -> Any:
    """The value at a path of keys; None if there is none. The longest key that fits comes first."""
    if path in line:
        return line[path]
    keys = path.split(".")
    for count in range(len(keys) - 1, 0, -1):
        inner = line.get(".".join(keys[:count]))
        if isinstance(inner, Mapping):
            return _at(inner, ".".join(keys[count:]))
    return None
