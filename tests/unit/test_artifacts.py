from pathlib import Path

import pytest

from retro import artifacts
from retro.actors.local import LocalOptions
from retro.actors.openai import OpenAIOptions
from retro.artifacts import digest_model, digest_parts, digest_path, finite, write_atomically


def test_a_folders_digest_follows_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("content")
    assert digest_path(tmp_path / "a") == digest_path(tmp_path / "b")
    (tmp_path / "b" / "inner" / "file").rename(tmp_path / "b" / "file")
    assert digest_path(tmp_path / "a") != digest_path(tmp_path / "b")
    (tmp_path / "a" / "inner" / "file").write_text("contents")
    first = digest_path(tmp_path / "a")
    (tmp_path / "a" / "inner" / "file").write_text("contentt")
    assert digest_path(tmp_path / "a") != first


def test_a_large_file_is_told_by_its_size_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "LARGE_FILE_BYTES", 10)
    monkeypatch.setattr(artifacts, "SAMPLE_BYTES", 2)
    path = tmp_path / "weights"
    seen = set()
    contents = ("a--------c-----f", "a--------c------f", "x--------c-----f", "a-------xc-----f", "a--------c-----x")
    for content in contents:
        path.write_text(content)
        seen.add(digest_path(path))
    assert len(seen) == 5


def test_nothing_to_digest_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        digest_path(tmp_path / "nowhere")
    assert digest_model("organisation/model", "v1") == "organisation/model@v1"


def test_an_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", "one")
    write_atomically(tmp_path / "new" / "file", "two")
    assert [(item.name, item.read_text()) for item in (tmp_path / "new").iterdir()] == [("file", "two")]


def test_what_json_cannot_say_becomes_null() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}


def test_an_actors_folders_count_by_their_contents_where_they_are_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    folder = str(tmp_path)
    sections = [
        LocalOptions(adapter=folder),
        OpenAIOptions(tokenizer=folder, context_tokens=99),
        OpenAIOptions(tokenizer=folder),
    ]
    before = [digest_parts(section) for section in sections]
    assert [list(parts) for parts in before] == [["actor_adapter"], ["actor_tokenizer"], []]
    (tmp_path / "file").write_text("two")
    assert [digest_parts(section) == old for section, old in zip(sections, before, strict=True)] == [
        False,
        False,
        True,
    ]
