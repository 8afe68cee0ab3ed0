"""Templates from outside: what they may use, and that whatever they do ends in text or in one line with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.config import ConfigError
from retro.prompts import PromptSet
from retro.prompts.sandbox import BUDGET, FILTER_NAMES, METHOD_NAMES
from retro.prompts.template import MAX_DEPTH, MAX_NODES
from retro.types import Step

STEPS = (Step("go to desk 1", "you see mug 1", thought="desks have mugs"), Step("look", "a room"))


def rendered(folder: Path, source: str | bytes, opening: str = "task: look") -> str:
    (folder / "actor.jinja").write_bytes(source if isinstance(source, bytes) else source.encode())
    return PromptSet("mine", folder).actor(opening, STEPS, ["be careful.", "go slowly."])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for step in steps if step.thought %}{{ loop.length }} {{ step.action }}{% endfor %}", "1 go to desk 1"),
        ("{% for step in steps[-1:] %}{{ step.action }}{% else %}none{% endfor %}", "look"),
        ("{{ steps[0].action ~ 0 }}/{{ steps[1]['observation'] }}", "go to desk 10/a room"),
        ("{{ steps|map(attribute='action')|join(', ') }}", "go to desk 1, look"),
        ("{{ steps|selectattr('thought')|list|length }} {{ memory|last|upper|replace('.', '!') }}", "1 GO SLOWLY!"),
        ("{% set ns = namespace(n=0) %}{% for s in steps %}{% set ns.n = ns.n + 2 %}{% endfor %}{{ ns.n }}", "4"),
        ("{% set first %}{{ memory[0] }}{% endset %}{{ first.split(' ')[1].rstrip('.') }}", "careful"),
        ("{{ 'yes' if 'mug' in steps[0].observation and steps|length >= 2 else 'no' }}", "yes"),
        ("{{ opening|truncate(7, true, leeway=0) }} {{ (7 / 3)|round(1) }} {{ 7 // 2 * 3 % 4 - 1 }}", "task... 2.3 0"),
        ("{% for n in range(2) %}{{ opening.split()[n].strip(':') }} {% endfor %}", "task look "),
        ("{% for n in range(3) %}{{ n }}{{ '' if loop.last else ',' }}{% endfor %}", "0,1,2"),
        ("{{ memory|join('\n')|indent(2) }}", "be careful.\n  go slowly."),
        (
            "{{ goal|default('none') }} {{ goal is defined }} {% with x = 'a' + 'b' %}{{ x }}{% endwith %}",
            "none False ab",
        ),
    ],
)
def test_what_a_prompt_needs_is_there(tmp_path: Path, source: str, text: str) -> None:
    assert rendered(tmp_path, source) == text


NEVER_ENDING = [
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{{ opening }}{% endfor %}",
    "{% for a in range(99999) %}" + "written again and again" * 99 + "{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for a in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for a in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == [n.x] }}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = n.x|replace('x', 'xx') %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = n.x.replace('', n.x) %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(40) %}{% set n.x = [n.x, n.x]|join(n.x) %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = 'x'|indent(99999, true) %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = opening|upper %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = opening == opening ~ a %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = opening[1:] %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = opening.strip(opening) %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = range(99999)|map('string')|select('in', opening)|list %}{% endfor %}",
    "{% for a in range(9999) %}{% set x = opening is in opening %}{% endfor %}",
    "{% set x = range(99999)|map('indent', -999999) %}{% for a in range(99999) %}{{ opening }}{% endfor %}",
    "{% set x = ['']|map('loop items', -2000000000) %}{% for a in range(99999) %}{{ opening }}{% endfor %}",
]


@pytest.mark.parametrize("source", NEVER_ENDING)
def test_a_rendering_that_would_go_on_is_stopped(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=rf"actor\.jinja: line 1: .*rendering takes more than {BUDGET:,} characters"):
        rendered(tmp_path, source, opening="x" * 50_000)


@pytest.mark.parametrize(
    "source",
    [
        "{{ lipsum(n=100000) }}",
        "{{ cycler }}",
        "{{ dict(a=1) }}",
        "{{ 9**9 }}",
        "{{ 'x' * 9 }}",
        "{{ '%9999999d' % 1 }}",
        "{{ '%9999999d'|format(1) }}",
        "{{ 'x'|center(999999999) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 1.5|round(999999999, 'ceil') }}",
        "{{ range(999999999) }}",
        "{{ 2147483648 * 2147483648 * 2147483648 * 2 }}",
        "{{ 0x" + "f" * 9999 + " }}",
        "{{ " + "9" * 9999 + " }}",
        "{{ ('1' ~ '0' * 99)|int(0, 2) }}",
        "{{ steps }}",
        "{{ steps[0].usage }}",
        "{{ steps[0].__class__ }}",
        "{{ opening.__class__.__mro__ }}",
        "{{ nothing }}",
        "{{ nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ opening() }}",
        "{{ opening.nothing() }}",
        "{{ opening[opening] }}",
        "{{ memory|first|truncate(1) }}",
        "{% for a in 5 %}{% endfor %}",
        "{% for a, b in steps %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in steps recursive %}{{ loop(steps) }}{% endfor %}",
        "{% block b %}{{ self.b() }}{% endblock %}",
        "{% filter upper %}a{% endfilter %}",
        "{% include 'actor.jinja' %}",
        "{% import 'actor.jinja' as a %}",
        "{% set n = namespace(x=1) %}{{ n.__class__ }}",
        "{{ '" + "x" * 2**20 + "' }}",
        "{% if opening %}" * 20_000 + "{% endif %}" * 20_000,
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{{ " + "1 + " * 20_000 + "1 }}",
        "{{ " + "not " * 20_000 + "1 }}",
        "{{ opening" + "|upper" * 20_000 + " }}",
        "{% if opening %}{% elif opening %}" + "{% elif opening %}" * 4_000 + "{% endif %}",
        "{% for a in steps %}" * 40 + "{% endfor %}" * 40,
        "{{ opening }}" * 20_000,
        "{% if %}",
        "{{",
        b"\xff\xfe",
    ],
    ids=lambda source: str(source[:30]),
)
def test_whatever_a_template_does_wrong_is_one_line_with_its_file(tmp_path: Path, source: str | bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(tmp_path, source)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "actor.jinja"))
    assert "\n" not in message
    assert len(message) < len(str(tmp_path)) + 300


def test_what_is_not_for_prompts_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"actor\.jinja: line 2: macro: .*your-own-environment\.md"):
        rendered(tmp_path, "{{ opening }}\n{% macro m() %}{% endmacro %}")
    with pytest.raises(ConfigError, match=r"actor\.jinja: line 3: UndefinedError: 'openning' is undefined"):
        rendered(tmp_path, "\n\n{{ openning }}")


@pytest.mark.parametrize("source", ["{{ opening }}" * MAX_NODES, "{% if opening %}" * MAX_DEPTH])
def test_too_large_a_template_is_refused_before_it_is_compiled(tmp_path: Path, source: str) -> None:
    source += "{% endif %}" * source.count("{% if")
    with pytest.raises(ConfigError, match=rf"more than {MAX_NODES:,} expressions, or nested deeper than {MAX_DEPTH}"):
        rendered(tmp_path, source)


def test_a_text_is_no_longer_than_what_it_tells_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"actor\.jinja: it writes 1,200,000 characters, more than 1,048,576 and 4"):
        rendered(tmp_path, "{% for a in range(60000) %}{{ opening }}{% endfor %}", opening="x" * 20)
    assert len(rendered(tmp_path, "{{ opening }}{{ opening }}", opening="x" * 2_000_000)) == 4_000_000


def test_one_rendering_leaves_the_next_its_budget(tmp_path: Path) -> None:
    (tmp_path / "actor.jinja").write_text("{{ opening }}{{ opening }}")
    prompts = PromptSet("mine", tmp_path)
    opening = "x" * (BUDGET // 3)
    assert [len(prompts.actor(opening, (), ())) for _ in range(3)] == [2 * len(opening)] * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", "not UTF-8 at byte 0"),
        (b"stop: &a [*a]", "refers to itself"),
        (b"!!python/object:os.system {}", "not YAML"),
        (b"stop: ['']", r"stop\.0: "),
        (b"stop: [" + b"a, " * 17 + b"]", "stop: "),
        (b"stop: [" + b"a" * 201 + b"]", r"stop\.0: "),
        (b"[format]", "the whole: "),
        (b"false", "the whole: "),
        (b"format: " + b"[" * 2_000, "nested deeper"),
    ],
)
def test_settings_that_are_wrong_are_one_line_with_their_file(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "actor.jinja").write_text("{{ opening }}")
    (tmp_path / "prompts.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"prompts\.yaml: .*{says}") as caught:
        PromptSet("mine", tmp_path)
    assert "\n" not in str(caught.value)


def test_empty_settings_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "actor.jinja").write_text("{{ opening }}")
    (tmp_path / "prompts.yaml").write_text("# nothing\n")
    assert PromptSet("mine", tmp_path).actor_stop == ("\n",)


def test_the_page_lists_what_a_template_may_use() -> None:
    page = (Path(__file__).parents[3] / "docs" / "your-own-environment.md").read_text(encoding="utf-8")
    names = set(FILTER_NAMES.split()) - {"count", "d"} | set(METHOD_NAMES.split())
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    assert f"{BUDGET:,}" in page
