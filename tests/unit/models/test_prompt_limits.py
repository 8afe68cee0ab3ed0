"""How long prompts may be: what the base holds decides, before anything is played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retro.cli.plan import plan_run
from retro.config import ConfigError, ModelSection, RunConfig, load_config
from retro.models.adapters import SharedBase
from retro.models.limits import prompt_tokens
from retro.models.loading import base_context
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.examples import encoder_of_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("given", "context", "found"),
    [(None, 512, 464), (None, 100_000, 2048), (None, None, 2048), (464, 512, 464), (5000, None, 5000), (9, 512, 9)],
)
def test_the_limit_is_what_the_base_holds_beside_an_answer(given: int | None, context: int | None, found: int) -> None:
    assert prompt_tokens(ModelSection(max_prompt_tokens=given, max_new_tokens=48), context) == found


def test_more_than_the_base_holds_is_refused_with_both_figures_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"max_prompt_tokens=465 and .*=48 .* 512 tokens .*=464 or less"):
        prompt_tokens(ModelSection(max_prompt_tokens=465, max_new_tokens=48), 512)
    with pytest.raises(ConfigError, match=r"max_new_tokens=512 leaves no room for a prompt in the 512 tokens"):
        prompt_tokens(ModelSection(max_new_tokens=512), 512)


def test_a_longer_rope_holds_more(tiny_model_dir: Path) -> None:
    section = ModelSection(base=str(tiny_model_dir), rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert base_context(section) == 4 * 1024
    assert prompt_tokens(section, base_context(section)) == 2048


def test_every_way_to_load_a_base_compares_before_anything_is_played(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(model={"max_prompt_tokens": 1019})  # and 6 new ones, of 1,024
    for begins in (
        lambda: plan_run(config, (COLLECT,)),
        lambda: run_stage(COLLECT, config),
        lambda: SharedBase.load(config.model, "cpu"),
        lambda: encoder_of_run(None, config),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=r"model\.max_prompt_tokens=1019 .*set .*=1018 or less"):
            begins()
    assert not (config.run_dir / "buffer.sqlite").exists()
    assert plan_run(make_config(model={"max_prompt_tokens": 1018}), (COLLECT,))


def test_the_quickstart_asks_for_what_its_base_holds() -> None:
    section = load_config(ROOT / "configs" / "quickstart.yaml").model
    section = section.model_copy(update={"base": str(ROOT / section.base)})
    assert prompt_tokens(section, base_context(section)) == 464
