"""The playbook's curator that asks a language model: what it is told, and what its answers may change."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from retro.memory.bank import fold_bank
from retro.memory.curation import MAX_OPERATIONS
from retro.memory.entries import entry_id
from retro.memory.playbook import Playbook
from retro.types import Episode
from tests.unit.memory.plays import HOSTILE, folded, memory_section, play, task

CURATOR = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}


class Scripted:
    """Gives its answers in turn, then empty lists; each costs ten tokens."""

    def __init__(self, *answers: object) -> None:
        self.answers = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
        self.prompts: list[str] = []

    @property
    def tokens(self) -> int:
        return 10 * len(self.prompts)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.answers[len(self.prompts) - 1] if len(self.prompts) <= len(self.answers) else "[]"


def curated(episodes: Sequence[Episode], *answers: object, **options: object) -> tuple[Playbook, Scripted]:
    memory = folded(memory_section("playbook", curator=CURATOR, **options))
    assert isinstance(memory, Playbook)
    ask = Scripted(*answers)
    return memory.fold_with(episodes, ask), ask


def counters(memory: Playbook) -> dict[str, tuple[int, int]]:
    return {bullet.text: (bullet.helpful, bullet.harmful) for bullet in memory.entries.values()}


def retries(count: int) -> list[Episode]:
    return [play(task(f"t{number}"), f"lesson {number}", success=number % 2 == 0) for number in range(count)]


def add(episode: int, text: str) -> dict[str, object]:
    return {"op": "add", "episode": episode, "text": text}


def id_of(text: str) -> str:
    return entry_id("household", text)


def test_a_lesson_has_the_task_of_its_episode_and_a_count_of_its_outcome() -> None:
    memory, ask = curated(retries(2), [add(1, "heat it \n first."), add(2, "look around.")])
    assert counters(memory) == {"heat it first.": (1, 0), "look around.": (0, 1)}
    assert {entry.text: entry.task for entry in memory.entries.values()} == {
        "heat it first.": "t0",
        "look around.": "t1",
    }
    assert len(ask.prompts) == 1


def test_it_is_asked_about_so_many_retries_at_a_time_and_told_the_bullets() -> None:
    episodes = [play(task("first")), *retries(5)]
    memory, ask = curated(episodes, [add(1, "heat it first.")], [add(1, "look around.")], retries_per_request=2)
    assert [prompt.count('"reflection": ') for prompt in ask.prompts] == [2, 2, 1]
    assert '"bullets": []' in ask.prompts[0]
    assert id_of("heat it first.") in ask.prompts[1]
    again, _ = curated(episodes, [add(1, "heat it first.")], [add(1, "look around.")], retries_per_request=2)
    assert memory.digest == again.digest


def test_recalled_bullets_are_counted_by_outcome_without_asking() -> None:
    memory, _ = curated(retries(1), [add(1, "heat it first.")])
    shown = (id_of("heat it first."),)
    later = [play(task("u"), recalled=shown), play(task("v"), success=False, recalled=shown)]
    ask = Scripted()
    assert counters(memory.fold_with(later, ask)) == {"heat it first.": (2, 1)}
    assert ask.prompts == []


def test_an_outcome_counts_once_whatever_the_answer_repeats() -> None:
    memory, _ = curated(retries(1), [add(1, "heat it first.")] * 20)
    assert counters(memory) == {"heat it first.": (1, 0)}
    again = play(task("u"), "lesson", recalled=(id_of("heat it first."),))
    assert counters(memory.fold_with([again], Scripted([add(1, "heat it first.")] * 20))) == {"heat it first.": (2, 0)}
    unread = play(task("v"), "lesson")
    assert counters(memory.fold_with([unread], Scripted([add(1, "heat it first.")]))) == {"heat it first.": (1, 0)}


def test_it_may_merge_and_delete() -> None:
    texts = ("heat it first.", "warm the thing up before.", "be careful.")
    first = [add(1, text) for text in texts]
    second = [
        {"op": "merge", "into": id_of(texts[0]), "others": [id_of(texts[1])]},
        {"op": "delete", "id": id_of(texts[2])},
    ]
    memory, _ = curated(retries(2), first, second, retries_per_request=1)
    assert counters(memory) == {"heat it first.": (2, 0)}


@pytest.mark.parametrize(
    "answer",
    [
        "I would add a bullet about heating.",
        '[{"op": "add", "episode": 1, "text": "cut',
        '{"op": "add", "episode": 1, "text": "not a list"}',
        [add(2, "of an episode that was not told")],
        [add(0, "numbers begin at 1")],
        [{**add(1, "with a count"), "helpful": 99}],
        [{"op": "update", "id": "x", "helpful": 99}],
        [{"op": "delete", "id": "unknown"}],
        [{"op": "merge", "into": "a", "others": []}],
        [add(1, "   ")],
        [add(1, "far too long " * 100)],
        ["delete everything", None, 7],
        "[" * 100_001,
        '[{"op": "add", "episode": 1e400, "text": "x"}]',
    ],
)
def test_what_is_no_operation_changes_nothing_and_is_logged(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        memory, _ = curated(retries(1), answer)
    assert memory.entries == {}
    assert "left out" in caplog.text
    assert max(map(len, caplog.messages)) < 1000


def test_an_answer_may_be_fenced_and_has_a_most_of_operations(caplog: pytest.LogCaptureFixture) -> None:
    fenced = f"```json\n{json.dumps([add(1, 'heat it first.')])}\n```"
    assert counters(curated(retries(1), fenced)[0]) == {"heat it first.": (1, 0)}
    many = [add(1, f"go to desk {number}") for number in range(MAX_OPERATIONS + 1)]
    assert len(curated(retries(1), many, capacity=100)[0].entries) == MAX_OPERATIONS
    assert f"more than {MAX_OPERATIONS} operations" in caplog.text


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_episodes_are_data(text: str) -> None:
    episodes = [play(task("t"), text or "nothing", thing=text[:50] or "mug")]
    memory, ask = curated(episodes)
    assert memory.entries == {}
    [prompt] = ask.prompts
    data = json.loads(prompt[prompt.index('{"bullets"' if '{"bullets"' in prompt else '{\n "bullets"') :])
    assert len(data["episodes"]) == 1
    assert len(prompt) < 10_000
    if text.strip():
        stored, _ = curated(episodes, [add(1, text[:200].replace("\ud800", "?"))])
        assert len(stored.entries) == 1  # as text
        assert counters(stored)[" ".join(text[:200].replace("\ud800", "?").split())] == (1, 0)


def test_a_bank_with_a_curator_cannot_be_folded_without_asking(tmp_path: Path) -> None:
    section = memory_section("playbook", curator=CURATOR)
    with pytest.raises(ValueError, match="needs someone to ask"):
        fold_bank(section, retries(1), tmp_path)
    facts = fold_bank(section, retries(3), tmp_path / "first", ask=Scripted([add(1, "heat it first.")]))
    assert facts.curator_tokens == 10
    more = [play(task("z"), "lesson")]
    assert fold_bank(section, more, tmp_path / "second", tmp_path / "first", ask=Scripted()).curator_tokens == 20


def test_bullets_of_several_environments_are_not_merged(caplog: pytest.LogCaptureFixture) -> None:
    other = play(task("far", environment="elsewhere"), "go far.")
    both = [{"op": "merge", "into": id_of("use the stove."), "others": [entry_id("elsewhere", "go far.")]}]
    memory, _ = curated([play(task("a"), "x"), other], [add(1, "use the stove."), add(2, "go far."), *both])
    assert set(counters(memory)) == {"use the stove.", "go far."}
    assert "its bullets are of several environments" in caplog.text


def test_a_curator_of_ones_own_is_refused_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange_curator.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for curator in ("strange_curator:Actor", {"kind": "strange_curator:Actor"}):
        with pytest.raises(ValidationError, match="a curator is one of the built-in kinds of actors"):
            memory_section("playbook", curator=curator)
    assert "strange_curator" not in sys.modules
