"""Banks that compare openings by the sentence vectors of a transformers encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retro.config import ConfigError, RunConfig
from retro.memory.bank import bank_inputs, fold_bank
from retro.memory.vectors import Vectors
from tests.unit.memory.plays import ask, folded, memory_section, opening, play, task

TEXTS = [opening("heat", "mug"), opening("clean", "egg"), "shelf 1"]


def test_a_similarity_is_the_cosine_of_mean_hidden_states(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModel.from_pretrained(tiny_model_dir).eval()

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    found = Vectors(str(tiny_model_dir), TEXTS).similarities(TEXTS[1])
    expected = [torch.cosine_similarity(vector(text), vector(TEXTS[1]), dim=0).item() for text in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[1] == pytest.approx(1.0)
    assert Vectors(str(tiny_model_dir), TEXTS[:2]).similarities(TEXTS[1]) == found[:2]  # each text is encoded alone


def test_texts_of_any_kind_have_a_vector(tiny_model_dir: Path) -> None:
    index = Vectors(str(tiny_model_dir), ["", "mug " * 100_000, "\x00"])
    assert all(-1.001 <= value <= 1.001 for value in index.similarities("mug"))
    assert Vectors(str(tiny_model_dir), []).similarities("mug") == []


def test_a_bank_recalls_by_the_vectors_if_there_is_an_encoder(tiny_model_dir: Path) -> None:
    kinds = ("heat", "clean", "cool", "put")
    episodes = [play(task(f"t{i}", kind), f"lesson {i}", thing=f"mug{i}") for i, kind in enumerate(kinds)]
    options = {"lessons": 4, "similarity": 1.0, "min_similarity": 0.0}
    section = memory_section("retrieval", vectors=str(tiny_model_dir), **options)
    openings = [episode.trajectory.opening for episode in episodes]
    differs = 0
    for thing in ("mug0", "egg", "plate 1", "desk"):
        query = ask("examine", thing)
        cosines = Vectors(str(tiny_model_dir), openings).similarities(query.opening)
        nearest_last = [f"lesson {i}" for i in sorted(range(4), key=cosines.__getitem__)]
        assert list(folded(section, *episodes).recall(query).entries) == nearest_last
        by_words = folded(memory_section("retrieval", **options), *episodes).recall(query).entries
        differs += list(by_words) != nearest_last
    assert differs, "words alone would have chosen the same"
    assert folded(section, *episodes).digest == folded(memory_section("retrieval", **options), *episodes).digest


def test_the_encoder_decides_what_is_played(
    make_config: Callable[..., RunConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_model_dir, encoder)
    config = make_config(memory={"kind": "retrieval", "vectors": str(encoder)})
    fold_bank(config.memory, [], config.run_dir / "memory")
    before = bank_inputs(config)
    (encoder / "config.json").write_text((encoder / "config.json").read_text() + " ")
    after = bank_inputs(config)
    assert before["bank"] == after["bank"]
    assert before["vectors"] != after["vectors"]


def test_something_else_than_an_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ConfigError, match="not an encoder with its tokenizer and safetensors weights"):
        Vectors(str(tmp_path), ["mug"])
