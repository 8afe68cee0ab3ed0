"""Texts by ALFWorld's grammar, without parsing anything twice. Only worker processes import this module.

TextWorld parses each text again at every step, and deep-copies every symbol with its context. Here each text is parsed
once, by TextWorld's own parser, and contexts are never copied. The texts are the same, which
``tests/unit/envs/test_alfworld_engine.py`` checks game by game; the reference is TextWorld 1.7.0's
``textworld/envs/pddl/textgen/__init__.py``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any

from textworld.envs.pddl import textgen
from textworld.logic import Rule

PARSED_TEXTS = 4096
"""The number of parsed texts that are kept. About 80 are common to all games; each goal adds one."""

_SAFE = (ast.Expression, ast.BinOp, ast.Add, ast.BoolOp, ast.Or, ast.Name, ast.Load, ast.Constant)


_EMPTY, _SEPARATOR, _LAST_SEPARATOR = _LIST_SYMBOLS = tuple(
    textgen.NonterminalSymbol(name) for name in ("list_empty", "list_separator", "list_last_separator")
)


class UnsafeGrammarError(ValueError):
    """A game's grammar that would run more code than names need."""


@dataclass(frozen=True, slots=True)
class Entity:
    """An object or a place with its names in texts."""

    id: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Context:
    """What the derivation of a text depends on: the facts, the entities, and what has been matched so far."""

    state: Any
    """``textworld.logic.State``."""
    entities: Mapping[str, Entity]
    mapping: Mapping[Any, Any]
    """``textworld.logic.Placeholder`` → ``Variable``."""

    def matches(self, query: str) -> list[Context]:
        """One context for each way of making ``query`` true."""
        found = self.state.all_assignments(_query(query), self.mapping)
        return [replace(self, mapping={**self.mapping, **mapping}) for mapping in found]

    def holds(self, query: str) -> bool:
        """Whether there is a way of making ``query`` true."""
        return any(True for _ in self.state.all_assignments(_query(query), self.mapping))

    def names(self) -> dict[str, Entity]:
        return {placeholder.name: self.entities[variable.name] for placeholder, variable in self.mapping.items()}


@dataclass(frozen=True, slots=True)
class Needs:
    """What the derivation of a text may ask for."""

    predicates: frozenset[str]
    """Those of the facts."""
    names: frozenset[str]
    """Those of the placeholders."""


class Narrator:
    """Derives texts by the rules of a ``textworld.envs.pddl.textgen.ContextSensitiveGrammar``."""

    def __init__(self, rules: Mapping[str, Sequence[Any]]) -> None:
        """
        Raises:
            UnsafeGrammarError: if an expression does more than name things.
        """
        self._rules = rules
        for productions in rules.values():
            for production in productions:
                check_expressions(production.rhs)

    def say(self, text: str, context: Context) -> str:
        """The text that is derived from ``text`` in ``context``."""
        return "".join(self._derive(symbol, context) for symbol in parse(text))

    def needs(self, text: str) -> Needs:
        """What the derivation of ``text`` depends on."""
        predicates: set[str] = set()
        names: set[str] = set()
        rules: set[str] = set()
        left = list(parse(text))
        queries: list[str] = []
        while left:
            match symbol := left.pop():
                case textgen.ListSymbol():
                    left += [symbol.symbol, *_LIST_SYMBOLS]
                case textgen.ConditionalSymbol():
                    left.append(symbol.expression)
                    queries.append(symbol.given)
                case textgen.EvalSymbol():
                    names.update(_code(symbol.expression).co_names)
                case textgen.NonterminalSymbol() if str(symbol) not in rules:
                    rules.add(str(symbol))
                    for production in self._rules.get(str(symbol), ()):
                        left += production.rhs
                        queries.append(production.condition)
                case _:
                    pass
        for predicate in (predicate for query in queries if query for predicate in _query(query).preconditions):
            predicates.add(predicate.name)
            names.update(placeholder.name for placeholder in predicate.parameters)
        return Needs(frozenset(predicates), frozenset(names))

    def _derive(self, symbol: Any, context: Context) -> str:
        match symbol:
            case textgen.NonterminalSymbol():
                return "".join(self._derive(part, context) for part in self._production(symbol, context))
            case textgen.ConditionalSymbol():
                return "".join(self._each(symbol, context))
            case textgen.ListSymbol():
                return self._list(self._each(symbol.symbol, context), context)
            case textgen.EvalSymbol():
                return str(eval(_code(symbol.expression), {"__builtins__": {}}, context.names()))
            case _:
                return str(symbol.symbol)

    def _production(self, symbol: Any, context: Context) -> Sequence[Any]:
        productions = self._rules.get(str(symbol))
        if not productions:
            raise textgen.CSGUnknownSymbolError(symbol)
        for production in productions:
            if not production.condition or context.holds(production.condition):
                rhs: Sequence[Any] = production.rhs
                return rhs
        raise ValueError(f"no rule of the grammar's #{symbol}# applies")

    def _each(self, symbol: Any, context: Context) -> list[str]:
        contexts = context.matches(symbol.given) if symbol.given else [context]
        return [self._derive(symbol.expression, one) for one in contexts]

    def _list(self, items: list[str], context: Context) -> str:
        if not items:
            return self._derive(_EMPTY, context)
        if len(items) == 1:
            return items[0]
        separator, last = self._derive(_SEPARATOR, context), self._derive(_LAST_SEPARATOR, context)
        return separator.join(items[:-1]) + last + items[-1]


@lru_cache(maxsize=PARSED_TEXTS)
def parse(text: str) -> tuple[Any, ...]:
    """The symbols of a text, by TextWorld's parser. They are shared, so do not change them."""
    symbols = tuple(textgen._parse_and_convert(text, rule_name="symbols"))
    check_expressions(symbols)
    return symbols


def check_expressions(symbols: Sequence[Any]) -> None:
    """Refuse unsafe expressions: TextWorld evaluates the ``{…}`` of grammars, which are downloaded, as Python.

    Raises:
        UnsafeGrammarError: for an expression that does more than read, add and choose names.
    """
    for symbol in symbols:
        match symbol:
            case textgen.ListSymbol():
                check_expressions([symbol.symbol])
            case textgen.ConditionalSymbol():
                check_expressions([symbol.expression])
            case textgen.EvalSymbol():
                _code(symbol.expression)
            case _:
                pass


@lru_cache(maxsize=PARSED_TEXTS)
def _code(expression: str) -> CodeType:
    text = expression.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        raise UnsafeGrammarError(f"the grammar's {{{text[:100]}}} is not an expression") from None
    for node in ast.walk(tree):
        if not isinstance(node, _SAFE) and not (isinstance(node, ast.Attribute) and not node.attr.startswith("_")):
            raise UnsafeGrammarError(f"the grammar's {{{text[:100]}}} does more than name things: it is not run")
    return compile(tree, "grammar", "eval")


@lru_cache(maxsize=PARSED_TEXTS)
def _query(expression: str) -> Any:
    return Rule.parse_conjunctive_query(expression)
