"""What all tests share: determinism, a tiny language model, and the place of the shared data."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `scripts` is no part of the installed package

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # what runs for seconds gains nothing by C2

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # no test depends on how busy the machine is


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make the slowest fixture once where tests are distributed by file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.scheduling import FilesByFixture

    return FilesByFixture(config, log)


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later search for garbage, of which a trainer makes several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Outcomes of self-tests are those of this run, in processes that tests start, too."""
    before = os.environ.get("RETRO_CACHE")
    os.environ["RETRO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["RETRO_CACHE"]
    else:
        os.environ["RETRO_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums in one order: what runs twice gives the same bits."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (d = 32, 2 layers, 4 heads, 2 of them for keys) and the household's word-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.small_models.household.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # peaked enough that greedy choices are no ties
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data's folder (``RETRO_SHARED_DATA``, or ``../shared/data`` beside the project); else a skip."""
    folder = Path(os.environ.get("RETRO_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set RETRO_SHARED_DATA")
    return folder
