"""The view of the config that a stage is handed."""

import pickle

import pytest

from retro.actors.openai import OpenAIOptions
from retro.config import BudgetSection, EnvironmentSection, ModelSection, RunConfig, parse_config
from retro.config.view import UndeclaredKeyError, declared, view_of

CONFIG = parse_config(
    {
        "seed": 7,
        "name": "mine",
        "model": {"base": "b"},
        "environment": {"options": {"a": 1}},
        "actor": {"kind": "openai", "model": "m", "base_url": "http://localhost/v1"},
    },
    "test",
)


def view(*keys: str) -> RunConfig:
    return view_of(CONFIG, "sft", keys)


def test_a_declared_section_is_handed_out_as_it_is_and_an_undeclared_key_is_named_with_its_stage() -> None:
    seen = view("model", "sft.epochs")
    assert seen.model is CONFIG.model
    assert seen.sft.epochs == CONFIG.sft.epochs
    with pytest.raises(UndeclaredKeyError, match=r"^stage sft read ppo\.steps without declaring it$"):
        _ = seen.ppo.steps
    with pytest.raises(UndeclaredKeyError, match=r"sft\.adam\.beta1"):
        _ = seen.sft.adam.betas
    with pytest.raises(UndeclaredKeyError, match="read seed"):
        _ = seen.seed
    with pytest.raises(AttributeError):
        _ = seen.no_such_section  # type: ignore[attr-defined]


def test_keys_of_speed_and_what_is_derived_from_readable_keys_need_no_declaration() -> None:
    seen = view()
    assert seen.run_dir == CONFIG.run_dir
    assert seen.actor.concurrency == CONFIG.actor.concurrency
    assert isinstance(seen.actor, OpenAIOptions)
    assert seen.actor.budget == BudgetSection()
    with pytest.raises(UndeclaredKeyError, match=r"buffer\.url"):
        _ = seen.buffer_url


def test_a_view_is_typed_as_what_it_shows() -> None:
    seen = view("environment.name", "model.dtype")
    assert isinstance(seen, RunConfig)
    assert isinstance(seen.environment, EnvironmentSection)
    assert isinstance(seen.model, ModelSection)


def test_dumping_works_with_the_declared_keys_alone() -> None:
    seen = view("environment.name", "environment.options")
    dumped = {"name": "household", "options": {"a": 1}}
    assert seen.environment.model_dump(include={"name", "options"}) == dumped
    assert seen.environment.model_dump(mode="json", exclude={"prompts", "tasks"}) == dumped
    assert seen.environment.model_dump_json(include={"name"}) == '{"name":"household"}'
    for dump in (
        seen.environment.model_dump,
        seen.environment.model_dump_json,
        lambda: seen.environment.model_dump(exclude={"tasks"}),
        lambda: seen.model_dump(include={"environment"}),
        lambda: seen.model_dump(include={"environment": True}, exclude={"environment": {"tasks"}}),
    ):
        with pytest.raises(UndeclaredKeyError, match=r"environment\.prompts"):
            dump()


def test_a_copy_changes_declared_keys_alone_and_is_still_a_view() -> None:
    seen = view("model.max_prompt_tokens").model.model_copy(update={"max_prompt_tokens": 9})
    assert seen.max_prompt_tokens == 9
    with pytest.raises(UndeclaredKeyError, match=r"model\.base"):
        _ = seen.base
    with pytest.raises(UndeclaredKeyError, match=r"model\.base"):
        seen.model_copy(update={"base": "other"})


def test_a_view_can_be_sent_to_another_process() -> None:
    seen = pickle.loads(pickle.dumps(view("environment.name")))
    assert seen.environment.name == "household"
    with pytest.raises(UndeclaredKeyError, match=r"stage sft read environment\.options"):
        _ = seen.environment.options


def test_a_section_declares_its_keys_but_those_of_speed_which_count_where_they_are_named() -> None:
    keys = {leaf.key for leaf in declared(CONFIG, ["actor", "name"])}
    assert {"actor.model", "actor.temperature", "name"} <= keys
    assert not keys & {"actor.concurrency", "runs"}
    with pytest.raises(ValueError, match=r"no key model\.bsae"):
        declared(CONFIG, ["model.bsae"])
