from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.buffer import ReplayBuffer
from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.jsonl import BufferImportError, export_jsonl, import_jsonl
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage, to_json

Make = Callable[..., Episode]

ROOT: dict[str, Any] = {
    "id": "a",
    "environment": "shop",
    "task": "buy a lamp",
    "trajectory": {"opening": "Find a lamp.", "steps": [{"action": "search lamp", "observation": "none"}]},
    "return": 0.25,
    "success": False,
}
RETRY: dict[str, Any] = {
    **ROOT,
    "id": "b",
    "trial": 1,
    "parent": "a",
    "return": 1,
    "success": True,
    "reflection": "Scroll.",
}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_the_least_a_line_needs(buffer: ReplayBuffer, tmp_path: Path) -> None:
    report = import_jsonl(buffer, write(tmp_path / "trials.jsonl", ROOT, "", RETRY))
    assert (report.added, report.present, report.skipped) == (2, 0, ())
    retry = buffer.get("b")
    assert retry is not None
    assert (retry.stop, retry.return_, retry.trial) == (StopReason.SUCCESS, 1.0, 1)
    assert retry.reflection is not None
    assert (retry.reflection.text, retry.reflection.source) == ("Scroll.", "import")
    assert retry.task.split is SplitRule().split("shop", "buy a lamp")


def test_importing_twice_adds_nothing_even_without_ids(buffer: ReplayBuffer, tmp_path: Path) -> None:
    nameless = {key: value for key, value in ROOT.items() if key != "id"}
    path = write(tmp_path / "trials.jsonl", nameless)
    assert import_jsonl(buffer, path).added == 1
    assert import_jsonl(buffer, path) == type(import_jsonl(buffer, path))(added=0, present=1)


def test_a_parent_may_stand_after_its_child(buffer: ReplayBuffer, tmp_path: Path) -> None:
    assert import_jsonl(buffer, write(tmp_path / "trials.jsonl", RETRY, ROOT)).added == 2


BAD = [
    ("{", "not JSON"),
    ("[]", "must be an object"),
    (json.dumps({**ROOT, "id": "c", "return": 2}), "return: "),
    (json.dumps({**ROOT, "id": "c", "retrun": 1}), "retrun: "),
    (json.dumps({key: value for key, value in ROOT.items() if key != "success"}), "success: "),
    (json.dumps({**ROOT, "id": "c", "info": {"x": float("nan")}}), "NaN"),
    (json.dumps({**ROOT, "id": "a", "return": 0.5}), "another one with this id"),
    (json.dumps({**RETRY, "id": "c", "parent": "nobody"}), "'nobody' is not in the buffer"),
    (json.dumps({**ROOT, "id": "c", "split": "train", "kind": "x"}), "one split and one kind"),
    (json.dumps({**RETRY, "id": "c", "reflection": {"text": 3}}), "reflection.text: "),
    (json.dumps({**ROOT, "id": "c", "stop": "tired"}), "stop: Input should be 'success', 'failure'"),
    (json.dumps({**ROOT, "id": "c", "recalled": {"entries": ["x"]}}), "recalled: 1 entries with 0 ids"),
    (json.dumps({**ROOT, "id": "c", "task": "\ud800"}), "half of a surrogate pair"),
    (json.dumps({**ROOT, "id": "c", "info": {"x": "infinite"}}).replace('"infinite"', "1e999"), "not a finite number"),
    (json.dumps({**ROOT, "id": "c", "trial": 2**63}), "an integer beyond 64 bits"),
    (json.dumps({**ROOT, "id": "c", "info": {"x": "digits"}}).replace('"digits"', "9" * 10**6), "beyond 64 bits"),
    (json.dumps({**ROOT, "id": "c", "info": {"x": "deep"}}).replace('"deep"', "[" * 10**5), "nested deeper than 100"),
    (json.dumps({**ROOT, "id": "c", "kind": "x" * 2**24}), "longer than 16,777,216 bytes"),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_bad_lines_are_named_and_refused_or_skipped(
    buffer: ReplayBuffer, tmp_path: Path, line: str, problem: str
) -> None:
    path = write(tmp_path / "trials.jsonl", ROOT, line, RETRY)
    with pytest.raises(BufferImportError, match=r"trials\.jsonl") as raised:
        import_jsonl(buffer, path)
    assert "line 2: " in str(raised.value)
    assert problem in str(raised.value)
    assert buffer.count() == 0
    report = import_jsonl(buffer, path, on_error="skip")
    assert report.added == 2
    (bad,) = report.skipped
    assert bad.number == 2
    assert problem in bad.problem


def test_what_hangs_on_a_bad_line_is_bad_too(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "trials.jsonl", {**ROOT, "success": "maybe"}, RETRY)
    report = import_jsonl(buffer, path, on_error="skip")
    assert (report.added, [bad.number for bad in report.skipped]) == (0, [1, 2])


def test_bytes_that_are_no_text_and_files_that_are_not_there(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"id": "\xe4"}\n')
    with pytest.raises(BufferImportError, match="line 1: not UTF-8"):
        import_jsonl(buffer, path)
    with pytest.raises(BufferImportError, match="no such file"):
        import_jsonl(buffer, tmp_path / "none.jsonl")


def test_only_the_first_problems_are_listed(buffer: ReplayBuffer, tmp_path: Path) -> None:
    with pytest.raises(BufferImportError, match="and 5 more"):
        import_jsonl(buffer, write(tmp_path / "trials.jsonl", *["{"] * 25))


def test_an_export_is_read_back_equal(buffer: ReplayBuffer, make: Make, tmp_path: Path) -> None:
    root = make("root", 0.3)
    for episode in (root, make("retry", 0.6, parent=root, text="öffne es"), make("control", 0.3, parent=root)):
        buffer.add(episode)
    path = tmp_path / "out" / "episodes.jsonl"
    assert export_jsonl(buffer, path) == 3
    assert list(path.parent.iterdir()) == [path]
    with ReplayBuffer("sqlite://") as other:
        assert import_jsonl(other, path).added == 3
        assert other.digest() == buffer.digest()
        assert list(other.episodes()) == list(buffer.episodes())
    assert export_jsonl(buffer, path, split="test") == 0


def test_an_empty_reflection_is_one(buffer: ReplayBuffer, make: Make, tmp_path: Path) -> None:
    """A model may end its answer at once."""
    root = make("root", 0.3)
    for episode in (root, make("retry", 0.6, parent=root, text="")):
        buffer.add(episode)
    export_jsonl(buffer, tmp_path / "episodes.jsonl")
    with ReplayBuffer("sqlite://") as other:
        import_jsonl(other, tmp_path / "episodes.jsonl")
        assert other.digest() == buffer.digest()


_ODD_TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
_TEXTS = st.text(max_size=8) | _ODD_TEXTS
_SOME = st.integers(0, 9) | st.integers(0, 9) | st.integers(-(2**65), 2**65)
_NUMBERS = st.floats() | _SOME | st.booleans()
_JSON = st.recursive(
    st.none() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)
_USAGES = st.builds(Usage) | st.builds(Usage, _SOME, _SOME)
_REWARDS = st.floats(-1, 1) | st.integers(-2, 2) | st.floats()
_STEPS = st.builds(Step, _TEXTS, _TEXTS, _REWARDS, _TEXTS, _USAGES)
_ANY_EPISODE = st.builds(
    Episode,
    id=st.text(max_size=8).map("id {}".format) | _ODD_TEXTS,
    task=st.builds(Task, st.just("shop") | _TEXTS, st.just("lamp") | _TEXTS, st.sampled_from(Split), _TEXTS),
    trial=_SOME,
    trajectory=st.builds(Trajectory, _TEXTS, st.lists(_STEPS, max_size=3).map(tuple)),
    return_=st.floats(0, 1) | st.sampled_from([0, 1]) | st.floats(),
    success=st.booleans(),
    stop=st.sampled_from(StopReason),
    seed=_SOME,
    usage=_USAGES,
    info=st.dictionaries(_TEXTS, _JSON, max_size=3),
)
_REFLECTIONS = st.builds(
    Reflection, _TEXTS, _TEXTS, _SOME, st.sampled_from(["stop", "length"]), _USAGES, st.none() | _SOME | st.floats()
)


@pytest.mark.no_cover  # the same lines a hundred times; the tests above cover them, and tracing doubles its time
@given(_ANY_EPISODE, _REFLECTIONS)
@settings(max_examples=100, deadline=None)
def test_what_the_buffer_takes_is_exported_and_imported_equal_and_the_rest_is_refused_by_id(
    episode: Episode, reflection: Reflection
) -> None:
    retry = replace(episode, id=f"{episode.id}'", trial=episode.trial + 1, parent=episode.id, reflection=reflection)
    with ReplayBuffer("sqlite://") as buffer, ReplayBuffer("sqlite://") as other, TemporaryDirectory() as folder:
        for added in (episode, retry):
            before = buffer.count()
            try:
                buffer.add(added)
            except EpisodeRefusedError as error:
                assert str(error).startswith(f"episode {added.id!r}: ") and "\n" not in str(error)
                assert buffer.count() == before
            else:
                found = buffer.get(added.id)
                assert found is not None
                assert content_digest(to_json(found)) == content_digest(to_json(added))
        export_jsonl(buffer, Path(folder) / "episodes.jsonl")
        import_jsonl(other, Path(folder) / "episodes.jsonl")
        assert other.digest() == buffer.digest()
        assert list(other.episodes()) == list(buffer.episodes())


@given(st.text(max_size=30), st.integers(0, 2**31))
def test_the_split_rule_is_a_function_of_environment_id_and_seed(task: str, seed: int) -> None:
    rule = SplitRule(seed)
    assert rule.split("hotpotqa", task) is SplitRule(seed).split("hotpotqa", task)
    assert SplitRule(seed, 1, 0).split("hotpotqa", task) is Split.VALIDATION
    assert SplitRule(seed, 0, 1).split("hotpotqa", task) is Split.TEST
    assert SplitRule(seed, 0, 0).split("hotpotqa", task) is Split.TRAIN


def test_the_split_rule_keeps_its_shares() -> None:
    found = [SplitRule(0, 0.2, 0.1).split("hotpotqa", str(number)) for number in range(5000)]
    assert found.count(Split.VALIDATION) == pytest.approx(1000, rel=0.1)
    assert found.count(Split.TEST) == pytest.approx(500, rel=0.15)
    with pytest.raises(ValueError, match="their sum"):
        SplitRule(0, 0.6, 0.6)


def test_what_an_actor_recalled_is_taken_from_its_line_or_derived_once(buffer: ReplayBuffer, tmp_path: Path) -> None:
    """A line without it: the last reflections on the way, also over parents that the buffer had before."""
    told = {"entries": ["a hint"], "ids": ["hint-7"]}
    import_jsonl(buffer, write(tmp_path / "a.jsonl", ROOT, {**RETRY, "success": False, "recalled": told}))
    third = {**RETRY, "id": "c", "trial": 2, "parent": "b", "success": False, "reflection": "Sort."}
    control = {**third, "id": "d", "trial": 3, "parent": "c", "reflection": None}
    import_jsonl(buffer, write(tmp_path / "b.jsonl", control, third), window=1)
    recalled = {episode.id: episode.recalled for episode in buffer.episodes()}
    assert recalled == {
        "a": Recalled(),
        "b": Recalled(("a hint",), ("hint-7",)),
        "c": Recalled(("Sort.",), ("reflection-1",)),
        "d": Recalled(("Sort.",), ("reflection-1",)),
    }
