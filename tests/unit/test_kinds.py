"""Sections that are read by the kind they name: built in, somebody's own, dumped, pickled, of another kind's keys."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retro.actors.local import LocalOptions
from retro.actors.openai import OpenAIOptions
from retro.config import ConfigError, KindSection, RunConfig, build, deciding, load_config, parse_config, resolve
from retro.config.points import POINTS
from retro.memory import ReflectionWindow

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "openai", "trl", "accelerate", "peft", "datasets", "numpy")
OWN = """
import dataclasses
from typing import ClassVar
from retro.config import PositiveInt, Section
from retro.types import Recalled

class Options(Section):
    newest: PositiveInt = 2
    mark: str

@dataclasses.dataclass
class Newest:
    Options: ClassVar = Options
    options: Options

    @classmethod
    def from_options(cls, options, **parts):
        return cls(options)

    def recall(self, query):
        return Recalled()

class Nothing:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "memories_of_mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "memories_of_mine", raising=False)
    return "memories_of_mine:Newest"


def test_a_kind_of_ones_own_reads_its_own_options(own: str) -> None:
    config = parse_config({"memory": {"kind": own, "options": {"mark": "!"}}}, "here")
    memory = build(config.memory)
    assert (memory.options.newest, memory.options.mark) == (2, "!")
    assert parse_config(yaml.safe_load(config.dump()), "there") == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_keys_of_the_loop_stay_beside_ones_own_options(own: str) -> None:
    tree = {"kind": own, "model": "m", "temperature": 0.5, "options": {"mark": "!"}}
    config = parse_config({"actor": tree}, "here")
    assert (config.actor.model, config.actor.temperature, config.actor.max_tokens) == ("m", 0.5, 128)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"kind": "windw"}, "memory.kind: memory 'windw' is not known; did you mean 'window'? there are: "),
        ({"kind": ["window"]}, "memory.kind: memory ['window'] is not known"),
        ({"kind": "memories_of_mine:Newest"}, "memory.options.mark: Field required"),
        ({"kind": "memories_of_mine:Newest", "options": {"mark": "!", "newst": 3}}, "did you mean 'newest'?"),
        ({"kind": "memories_of_mine:Newest", "options": {"mark": "!"}, "size": 3}, "memory.size: unknown key"),
        ({"kind": "memories_of_mine:Oldest"}, "the module 'memories_of_mine' has no 'Oldest'"),
        ({"kind": "memories_of_mine:Nothing"}, "is not a memory; it lacks from_options"),
        ({"kind": "nowhere_at_all:Newest"}, "there is no module 'nowhere_at_all'"),
        (3, "memory: must be the name of a kind, or a mapping of keys with one (got 3)"),
    ],
)
def test_a_mistake_in_a_kind_is_named(own: str, memory: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"memory": memory}, "here")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"actor": {"base_url": "http://x/v1"}}, "actor.base_url: unknown key; openai reads it, and this is local"),
        ({"actor": {"kind": "openai", "dtype": "float16"}}, "actor.dtype: unknown key; local reads it"),
        ({"ppo": {"algorithm": "dpo", "clip": 0.1}}, "ppo.clip: unknown key; grpo and ppo read it, and this is dpo"),
        ({"ppo": {"reward": [{"kind": "model", "scor": 1}]}}, "ppo.reward.0.scor: unknown key; did you mean 'score'?"),
        ({"ppo": {"reward": {"kind": "model", "scor": 1}}}, "ppo.reward.0.scor: unknown key; did you mean 'score'?"),
        ({"ppo": {"reward": []}}, "ppo.reward: "),
    ],
)
def test_a_key_of_another_kind_is_refused_with_who_reads_it(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree, "here")
    assert says in str(caught.value)


def test_the_name_of_a_kind_stands_for_its_defaults() -> None:
    config = parse_config({"memory": "window", "ppo": {"reward": "model"}}, "here")
    assert build(config.memory) == ReflectionWindow(3)
    assert config.ppo.rewards == parse_config({"ppo": {"reward": [{"kind": "model"}]}}, "here").ppo.rewards


def test_an_override_of_the_kind_leaves_out_what_the_file_says_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("actor: {kind: openai, model: m, base_url: http://x/v1, max_tokens: 7}\n", encoding="utf-8")
    assert load_config(path, ["actor.kind=local"]).actor == LocalOptions(model="m", max_tokens=7)
    with pytest.raises(ConfigError, match=r"actor\.endpoint: unknown key; openai reads it"):
        load_config(path, ["actor.kind=local", "actor.endpoint=chat"])


def test_keys_of_speed_do_not_decide() -> None:
    slow, fast = OpenAIOptions(cache="a", concurrency=1), OpenAIOptions(max_retries=0, timeout_seconds=1)
    assert deciding(slow) == deciding(fast) != deciding(OpenAIOptions(endpoint="completions"))
    assert "concurrency" not in deciding(slow)


@pytest.mark.parametrize(("point", "kind"), [(point, kind) for point in POINTS for kind in POINTS[point].kinds])
def test_every_built_in_kind_is_there_and_has_options(point: str, kind: str) -> None:
    if POINTS[point].kinds[kind].missing:
        pytest.skip("its package is not installed")
    found = resolve(point, kind)
    if point != "environment":
        assert issubclass(found.Options, KindSection)
        assert found.Options().chosen == kind


shared = {
    "model": st.text(max_size=8),
    "temperature": st.floats(0, 2),
    "context_tokens": st.none() | st.integers(1, 10**6),
}
actors = st.fixed_dictionaries(
    {},
    optional={**shared, "dtype": st.sampled_from(["float32", "bfloat16"]), "adapter": st.none() | st.text(max_size=8)},
) | st.fixed_dictionaries(
    {"kind": st.just("openai"), "tokenizer": st.text(max_size=8)},
    optional={
        **shared,
        "endpoint": st.sampled_from(["chat", "completions"]),
        "extra_body": st.dictionaries(st.text(max_size=4), st.none() | st.integers(-9, 9) | st.text(max_size=4)),
        "budget": st.fixed_dictionaries({"tokens": st.integers(1, 10**9)}),
    },
)
terms = st.fixed_dictionaries({}, optional={"weight": st.floats(-2, 2)}) | st.fixed_dictionaries(
    {"kind": st.just("model")}, optional={"score": st.sampled_from(["sigmoid", "standardise"])}
)
rewards = st.sampled_from(["model", "environment"]) | terms | st.lists(terms, min_size=1, max_size=3)
policies = st.one_of(
    st.fixed_dictionaries({"reward": rewards}, optional={"lam": st.floats(0, 1), "steps": st.integers(1, 99)}),
    st.fixed_dictionaries({"algorithm": st.just("grpo"), "reward": rewards}, optional={"clip": st.floats(0.1, 1)}),
    st.fixed_dictionaries(
        {"algorithm": st.just("dpo")}, optional={"kl": st.fixed_dictionaries({"coefficient": st.floats(0.01, 1)})}
    ),
)


@given(actors, st.integers(1, 9), policies)
def test_what_is_dumped_of_any_kind_reads_back_equal(actor: dict[str, Any], size: int, ppo: dict[str, Any]) -> None:
    config = parse_config({"actor": actor, "memory": {"size": size}, "ppo": ppo}, "here")
    again = parse_config(yaml.safe_load(config.dump()), "there")
    assert again == config
    assert type(again.actor) is type(config.actor)
    assert again.dump() == config.dump()
    assert pickle.loads(pickle.dumps(config)) == config


def test_shipped_configs_are_read_without_the_heavy_packages() -> None:
    paths = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "examples").rglob("*.yaml"))]
    paths = [path for path in paths if path.name != "prompts.yaml"]
    code = (
        "import sys; from retro.config import load_config\n"
        f"for path in {[str(path) for path in paths]}: load_config(path)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_defaults_are_of_the_default_kinds() -> None:
    assert isinstance(RunConfig().actor, LocalOptions)
