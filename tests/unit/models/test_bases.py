"""Every architecture that ``docs/bases.md`` names, on small random models: exact, on which path, or refused.

Sequences lie on both sides of every window. What is compared with is the model's own forward pass of one sequence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from flex import use_flex_attention
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.config import LoraSection, ModelSection
from retro.models.adapters import SharedBase
from retro.models.backbone import UnsupportedModelError, plain_model
from retro.models.bases import SAMPLING, TRAINING, obstacle
from retro.models.generation import Engine
from retro.models.packing import pack, response_outputs
from retro.types import Sampling
from scripts import write_bases_docs
from tests.architectures import NAMES, REFUSED, TARGETS, WINDOW, known, make, pinned

TOLERANCE = 1e-3
_ALWAYS = """
cohere2 deepseek_v3 diffllama falcon falcon_h1 gemma2 gemma3_text gemma3n_text gpt2 gpt_neox gpt_oss granite jamba
bloom llama llama4_text mamba2 minicpm3 mistral mixtral mpt olmo2 phi3 qwen2 qwen3 qwen3_moe qwen3_next
recurrent_gemma smollm3
"""
ALWAYS = set(_ALWAYS.split())
"""One or more of every kind of attention and layer, and the most used; the others run with the slow tests."""


def tokens(count: int, draw: random.Random) -> list[int]:
    return [draw.randrange(5, 110) for _ in range(count)]


def texts(lengths: dict[int, Sequence[int]]) -> tuple[list[list[int]], list[list[list[int]]]]:
    draw = random.Random(0)
    return [tokens(length, draw) for length in lengths], [[tokens(n, draw) for n in own] for own in lengths.values()]


WITHIN = texts({11: (5, 1, 9), 3: (4, 4), 20: (WINDOW - 20,)})
BEYOND = texts({17: (5, 9), 50: (3, 20), 3: (40,)})


@torch.no_grad()
def alone(model: torch.nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def load(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase, lora: LoraSection | None = None) -> SharedBase:
    """As a user's own base: from files."""
    make(kind, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SharedBase.load(ModelSection(base=str(folder), lora=lora or LoraSection(r=2)), "cpu")


def architectures(names: Sequence[str]) -> list[object]:
    def marks(kind: str) -> list[pytest.MarkDecorator]:
        unknown = [] if known(kind) else [pytest.mark.skip(f"this transformers has no {kind}")]
        return [*unknown, *([] if kind in ALWAYS else [pytest.mark.slow])]

    return [pytest.param(kind, marks=marks(kind)) for kind in names]


@pytest.mark.parametrize("kind", architectures([name for name in NAMES if name not in REFUSED]))
def test_an_architecture_is_exact(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        base = load(kind, tmp_path, tokenizer, LoraSection(r=2, target_modules=TARGETS.get(kind, "all-linear")))
    except UnsupportedModelError as error:
        if pinned():
            raise
        pytest.skip(f"refused with these versions: {error}")
    model = plain_model(base.model)
    if pinned():
        for use, listed in (("training", TRAINING), ("sampling", SAMPLING)):
            assert (obstacle(model, use, WINDOW) is None) == (kind in listed), f"{use} takes another path"
    check_packed(model, *BEYOND)  # within a window the self-test has just compared the same
    check_sampled(model, tokenizer, [WITHIN[0][0], *BEYOND[0][1:]])
    if obstacle(model, "training", WINDOW) is None and getattr(model, "_supports_flex_attn", False):
        with torch.no_grad():
            slices = response_outputs(model, pack(*WITHIN))
            use_flex_attention(monkeypatch)
            flex = response_outputs(model, pack(*WITHIN))
        torch.testing.assert_close(flex.log_probs, slices.log_probs, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def check_packed(model: PreTrainedModel, prompts: list[list[int]], responses: list[list[list[int]]]) -> None:
    outputs = response_outputs(model, pack(prompts, responses))
    pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
    for row, (prompt, response) in enumerate(pairs):
        found = outputs.log_probs[row, : len(response)]
        torch.testing.assert_close(found, alone(model, prompt, response), rtol=0, atol=TOLERANCE)


def check_sampled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> None:
    engine = Engine(model, tokenizer)
    drawn = engine.sample(prompts, 2, Sampling(1.0, max_tokens=4), [[1, 2]] * len(prompts))
    for prompt, answers in zip(prompts, drawn, strict=True):
        for answer in answers:
            expected = alone(model, prompt, answer.ids)
            assert answer.log_probs == pytest.approx(expected.tolist(), abs=TOLERANCE)


@pytest.mark.skipif(not pinned(), reason="the lists are about the versions in constraints.txt")
@pytest.mark.parametrize("kind", architectures([*REFUSED]))
def test_an_architecture_is_refused_in_one_sentence(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[kind]) as caught:
        load(kind, tmp_path, tokenizer)
    assert "\n" not in str(caught.value) and kind in str(caught.value)


@pytest.mark.skipif(not pinned(), reason="the lists are about the versions in constraints.txt")
@pytest.mark.parametrize("kind", architectures([*TARGETS]))
def test_adapters_on_layers_that_take_none_are_refused_with_the_remedy(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    remedy = "training mode differ" if kind == "gemma3n_text" else r"name the layers to adapt, such as \[q_proj, v_proj"
    with pytest.raises(UnsupportedModelError, match=remedy) as caught:
        load(kind, tmp_path, tokenizer)
    assert "\n" not in str(caught.value) and kind in str(caught.value)


def test_the_lists_name_what_was_tested() -> None:
    assert TRAINING - set(NAMES) == SAMPLING - TRAINING == set()
    assert len([kind for kind in NAMES if kind not in REFUSED]) >= 40
    assert set(REFUSED) | set(TARGETS) | ALWAYS <= set(NAMES)


def test_the_page_says_what_was_tested() -> None:
    page = write_bases_docs.PAGE.read_text(encoding="utf-8")
    written = page.partition(write_bases_docs.BEGIN)[2].partition(write_bases_docs.END)[0]
    assert written.strip() == write_bases_docs.lists().strip(), "run: make docs"
