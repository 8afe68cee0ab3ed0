"""A template file of a prompt folder, which is checked and rendered in bounded time and memory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

from retro.config import ConfigError
from retro.prompts.sandbox import MAX_INTEGER, NODE_COST, BoundedEnvironment
from retro.reading import UnreadableError, cut, read_text
from retro.types import Step

_NAMES = (
    "Template Output TemplateData For If Assign AssignBlock With Name NSRef Const List Tuple CondExpr Filter Test Call "
    "Getattr Getitem Slice Keyword Concat Compare Operand Not And Or Neg Pos Add Sub Mul Div FloorDiv Mod"
)
CONSTRUCTS = frozenset(_NAMES.split())
"""The nodes of Jinja's syntax that a template may contain."""
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_TEXT = 2**20
REPETITIONS = 4
"""A text has at most ``MAX_TEXT`` characters, or ``REPETITIONS`` times more than the variables have."""
_INCLUDING = (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)


class PromptTemplate:
    """One template file.

    Raises:
        ConfigError: naming the file, if it cannot be read, is not a template, or uses parts of Jinja that are not
            allowed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _named(path):
            self._template = _compiled(read_text(path))

    def render(self, **variables: Any) -> str:
        """Render the template.

        Raises:
            ConfigError: naming the file, if the template fails, exceeds its budget, or writes far more than its
                variables hold.
        """
        with _named(self._path):
            text = self._template.render(variables)
        if len(text) > MAX_TEXT and len(text) > MAX_TEXT + REPETITIONS * _characters(list(variables.values())):
            raise ConfigError(
                f"{self._path}: it writes {len(text):,} characters, more than {MAX_TEXT:,} and {REPETITIONS} times "
                "its variables: show less"
            )
        return text


@lru_cache(maxsize=128)
def _compiled(text: str) -> Template:
    """A template from its text. One process meets the same few texts again and again."""
    environment = BoundedEnvironment()
    tree = environment.parse(text)
    _check(tree)
    return environment.from_string(_Charging().visit(tree))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Step):
        return len(value.thought) + len(value.action) + len(value.observation)
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0


def _check(tree: nodes.Template) -> None:
    """Raise TemplateSyntaxError for nodes that are not allowed, and for trees that are too large or too deep."""
    level: list[nodes.Node] = [tree]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        for node in level:
            name = type(node).__name__
            if isinstance(node, _INCLUDING):
                raise TemplateSyntaxError(
                    "it includes another file, which would be missing in digests and exports", node.lineno
                )
            if name not in CONSTRUCTS or (isinstance(node, nodes.For) and node.recursive):
                raise TemplateSyntaxError(
                    f"{name.lower()}: a prompt may not use it (docs/your-own-environment.md)", node.lineno
                )
            if isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value > MAX_INTEGER:
                raise TemplateSyntaxError(f"a number beyond {MAX_INTEGER:,}", node.lineno)
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise TemplateSyntaxError(
                f"more than {MAX_NODES:,} expressions, or nested deeper than {MAX_DEPTH}: make it simpler", node.lineno
            )
        level = [child for node in level for child in node.iter_child_nodes()]


class _Charging(NodeTransformer):
    """Adds a charge before operations for which the generated code does not call the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        parts = [part for child in node.iter_child_nodes(exclude=("iter",)) for part in _parts(child)]
        written = sum(len(part.data) for part in parts if isinstance(part, nodes.TemplateData))
        cost = nodes.Const(written + NODE_COST * len(parts))
        self.generic_visit(node)
        node.iter = _filtered("loop items", node.iter, cost)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered("charged", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("charged", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered("charged", node.node)
        return node


def _parts(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)


def _filtered(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn any error of a template into one line that names its file."""
    try:
        yield
    except UnreadableError as error:
        raise ConfigError(str(error)) from None
    except TemplateSyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {_line(error.message)}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
        where = f"line {lines[-1]}: " if lines else ""
        raise ConfigError(f"{path}: {where}{type(error).__name__}: {_line(str(error))}") from error


def _line(text: str | None) -> str:
    return cut(" ".join((text or "").split()))
