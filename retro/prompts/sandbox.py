"""A sandbox for templates: it allows the filters, tests, methods and fields listed here, within a budget.

A prompt folder may come with somebody else's export, so templates are not trusted. The functions that the generated
code calls charge the budget: a loop for its items and the size of its body, before it runs; every other operation for
the length of its operands and its result. :mod:`retro.prompts.template` adds the calls that Jinja would not make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import StrictUndefined, Undefined, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from retro.reading import cut
from retro.types import Step

BUDGET = 2**25
"""The budget of one rendering, in characters of its text and of all values that are computed for it."""
NODE_COST = 32
"""The cost of a template's node in each pass of a loop, and of an item whenever a list is inspected."""
FILTER_NAMES = (
    "abs capitalize count d default first float indent int join last length list lower map reject rejectattr replace "
    "reverse round select selectattr string title trim truncate upper wordcount"
)
TEST_NAMES = (
    "boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer le lessthan lower lt ne none "
    "number odd sameas string true undefined upper == != < <= > >="
)
METHOD_NAMES = "endswith lower lstrip removeprefix removesuffix replace rstrip split splitlines startswith strip upper"
"""Methods of a text."""
FIELD_NAMES = {
    Step: "action observation reward thought",
    LoopContext: "depth depth0 first index index0 last length nextitem previtem revindex revindex0",
}
_FIELDS = {kind: frozenset(names.split()) for kind, names in FIELD_NAMES.items()}
MAX_INTEGER = 2**64
_MAX_DECIMALS = 20


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of a template's generated code: it allows only the names listed above, and charges for them."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False, finalize=_shown)
        self.context_class = BoundedContext
        self.globals = {"range": safe_range, "namespace": Namespace}
        own = _OWN | {name: partial(FILTERS[name], self) for name in ("first", "last", "truncate")}
        self.filters = {name: _counted(own.get(name, FILTERS[name])) for name in FILTER_NAMES.split()}
        self.filters |= {
            name: FILTERS[name] for name in ("count", "d", "default", "length")
        }  # their cost does not depend on the length
        self.filters |= {"charged": _charged, "concatenated": _concatenated, "loop items": _loop_items}
        tests: dict[str, Any] = TESTS
        self.tests = {name: _counted(tests[name]) for name in TEST_NAMES.split()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if attribute in _FIELDS.get(type(obj), ()):
            return getattr(obj, attribute)
        if isinstance(obj, str) and attribute in _METHODS:
            return _Method(attribute, obj)
        if isinstance(obj, Namespace) and not attribute.startswith("_") and hasattr(obj, attribute):
            return getattr(obj, attribute)
        return self.undefined(f"a {type(obj).__name__} has no {cut(attribute, 40)!r} in a template", obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        if isinstance(obj, (str, list, tuple, range)) and isinstance(argument, int):
            return obj[argument] if -len(obj) <= argument < len(obj) else self.undefined(obj=obj, name=str(argument))
        raise TypeError(f"a {type(obj).__name__} has no items by {type(argument).__name__}")

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        for name in ("_loop_vars", "_block_vars"):  # the generated code adds these for macros, which are not allowed
            kwargs.pop(name, None)
        if called is safe_range or called is Namespace or isinstance(called, Undefined):
            return called(*args, **kwargs)
        if isinstance(called, _Method):
            return _METHODS[called.name](context, called.text, *args, **kwargs)
        raise TypeError(f"a {type(called).__name__} cannot be called")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic of bounded numbers, and ``+`` of two texts or two lists."""
        _charge(context, left, right)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)) and operator != "**":
            if max(abs(left), abs(right)) > MAX_INTEGER:
                raise OverflowError(f"a number beyond {MAX_INTEGER:,}")
            return super().call_binop(context, operator, left, right)
        if operator == "+" and type(left) is type(right) and type(left) in (str, list, tuple):
            return super().call_binop(context, operator, left, right)
        raise TypeError(f"{operator} takes numbers, not {type(left).__name__} and {type(right).__name__}")


class BoundedContext(Context):
    """The variables of one rendering, and the rest of its budget."""

    left = BUDGET

    def spend(self, characters: int) -> None:
        self.left -= max(0, characters)
        if self.left < 0:
            raise TemplateRuntimeError(
                f"rendering takes more than {BUDGET:,} characters and steps: use fewer or shorter loops"
            )

    def charge(self, value: Any) -> None:
        """Spend the cost of inspecting a whole value."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple)):
            self.spend(NODE_COST * (1 + len(value)))
            for item in value:
                self.charge(item)
        elif isinstance(value, range):
            self.spend(NODE_COST * (1 + len(value)))


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of a text, not yet called."""

    name: str
    text: str


def _charge(context: Context, *values: Any) -> None:
    assert isinstance(context, BoundedContext)
    for value in values:
        context.charge(value)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a filter or test of ``function`` that charges for its operands and its result."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @pass_context
    def counted(context: BoundedContext, /, *args: Any, **kwargs: Any) -> Any:
        _charge(context, *args, *kwargs.values())
        result = function(context, *args, **kwargs) if takes_context else function(*args, **kwargs)
        result = list(result) if isinstance(result, Iterator) else result
        _charge(context, result)
        return result

    return counted


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (int, float, Undefined)):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not text: show its parts")


@pass_context
def _shown(context: BoundedContext, value: Any) -> str:
    text = value if type(value) is str else _text(value)
    context.spend(len(text))
    return text


@pass_context
def _charged(context: BoundedContext, value: Any) -> Any:
    context.charge(value)
    return value


@pass_context
def _concatenated(context: BoundedContext, parts: list[Any]) -> str:
    texts = [_text(part) for part in parts]
    context.spend(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _loop_items(context: BoundedContext, items: Any, cost: int) -> Any:
    if not isinstance(items, (list, tuple, str, range)):
        raise TypeError(f"a {type(items).__name__} cannot be looped over")
    context.spend(len(items) * cost)
    return items


@pass_context
def _join(context: BoundedContext, items: Any, d: str = "", attribute: str | None = None) -> str:
    values = items if attribute is None else map(make_attrgetter(context.environment, attribute), items)
    texts = [_text(value) for value in values]
    context.spend(len(texts) * len(d) + sum(map(len, texts)))
    return d.join(texts)


@pass_context
def _replace(context: BoundedContext, text: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    context.spend(text.count(old) * len(new))
    return str(text.replace(old, new, count))


@pass_context
def _indent(context: BoundedContext, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(text)
    context.spend((1 + len(text.splitlines())) * (len(width) if isinstance(width, str) else width))
    return str(FILTERS["indent"](text, width, first, blank))


def _splitting(split: Callable[..., Any]) -> Callable[..., Any]:
    """Charge for ``split``, which makes many objects of one text."""

    @pass_context
    def parts(context: BoundedContext, value: Any, *args: Any) -> Any:
        context.spend(4 * len(value))
        return split(value, *args)

    return parts


def _stripping(strip: Callable[[str, str | None], str]) -> Callable[..., str]:
    @pass_context
    def stripped(context: BoundedContext, text: Any, chars: str | None = None) -> str:
        text = _text(text)
        context.spend(len(text) * len(chars or ""))
        return strip(text, chars)

    return stripped


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    number: int = FILTERS["int"](value, default, base)
    if abs(number) > MAX_INTEGER:
        raise OverflowError(f"a number beyond {MAX_INTEGER:,}")
    return number


def _round(value: float, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > _MAX_DECIMALS:
        raise ValueError(f"round takes up to {_MAX_DECIMALS} decimals")
    return FILTERS["round"](value, precision, method)


_OWN: dict[str, Callable[..., Any]] = {
    "indent": _indent,
    "int": _int,
    "join": _join,
    "list": _splitting(list),
    "replace": _replace,
    "round": _round,
    "string": _text,
    "title": _splitting(FILTERS["title"]),
    "trim": _stripping(str.strip),
    "wordcount": _splitting(FILTERS["wordcount"]),
}
_METHODS = {name: _counted(getattr(str, name)) for name in METHOD_NAMES.split()} | {
    "lstrip": _counted(_stripping(str.lstrip)),
    "replace": _counted(_replace),
    "rstrip": _counted(_stripping(str.rstrip)),
    "split": _counted(_splitting(str.split)),
    "splitlines": _counted(_splitting(str.splitlines)),
    "strip": _counted(_stripping(str.strip)),
}
