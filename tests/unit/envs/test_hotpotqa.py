"""HotPotQA played by hand over invented pages, tasks rebuilt from files in the official layout, wrong options named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.base import EnvironmentFailedError, UnknownTaskError
from retro.envs.hotpotqa import HotpotQATasks
from retro.envs.hotpotqa.documents import OfflineDocuments, Page
from retro.envs.hotpotqa.play import ALLOWED, OVER, HotpotQA, parse_action
from retro.envs.hotpotqa.questions import Question
from retro.envs.testing import check_environment
from retro.types import Split, Task

SHARED = Path(os.environ.get("RETRO_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
BRIDGE = Page(
    "Kallsund Bridge",
    (
        "The Kallsund Bridge is a swing bridge in Havnvik.",
        "",
        "It crosses a strait.",
        "It is 212 metres long.",
        "Its steel is from Sheffield.",
        "Until 1968 it carried a tram line.",
        "The bridge was opened in 1909 by Karl [the mayor].",
    ),
)
ENGINEER = Page("Marta Ellingsvold", ("Marta Ellingsvold was an engineer.", "Her best work is the Kallsund Bridge."))
PAGES = (BRIDGE, ENGINEER)
QUESTION = Question("q", "Who opened Marta Ellingsvold's best bridge?", "Karl the mayor", "bridge", ())
SHOWN = (
    "The Kallsund Bridge is a swing bridge in Havnvik. It crosses a strait. It is 212 metres long. "
    "Its steel is from Sheffield. Until 1968 it carried a tram line."
)


def play(answer: str = QUESTION.answer, steps: int = 6) -> HotpotQA:
    return HotpotQA(Question("q", QUESTION.text, answer, "bridge", ()), OfflineDocuments(PAGES), steps)


def official(number: int, kind: str = "bridge") -> dict[str, Any]:
    """An entry of the official layout, with a page of its own and one that all share."""
    return {
        "_id": f"q{number}",
        "question": f"Who opened bridge {number}?",
        "answer": f"Karl {number}",
        "type": kind,
        "level": "hard",
        "supporting_facts": [["Kallsund Bridge", 6], [f"Karl {number}", 0]],
        "context": [[BRIDGE.title, list(BRIDGE.sentences)], [f"Karl {number}", [f"Karl {number} is a mayor."]]],
    }


def written(path: Path, numbers: range) -> str:
    path.write_text(json.dumps([official(number) for number in numbers]))
    return str(path)


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("Search[Kallsund Bridge]", ("search", "Kallsund Bridge")),
        ("  LOOKUP [ a  word ] . ", ("lookup", "a word")),
        ("finish[x [y] z].", ("finish", "x [y] z")),
        ("Finish[1, [2], [[3]]]", ("finish", "1, [2], [[3]]")),
        ("Finish[half [open]", ("finish", "half [open")),
        ("Search[a], Search[b]", None),
        ("Search[a] and Search[b]", None),
        ("Search[a]\nSearch[b]", None),
        ("Search[a]]", None),
        ("Search[a", None),
        ("Search a", None),
        ("I do Search[a]", None),
        ("Search[]", None),
        ("Finish[ ]", None),
        ("Finish[]", None),
        ("think[I need the bridge]", None),
        ("Compare[a, b]", None),
        ("", None),
        ("x" * 10_000, None),
        ("search[" + "]" * 10_000, None),
    ],
)
def test_what_an_action_is(action: str, parsed: tuple[str, str] | None) -> None:
    assert parse_action(action) == parsed


def test_a_play_by_hand() -> None:
    game = play()
    assert game.reset(seed=3) == ("Question: Who opened Marta Ellingsvold's best bridge?", {"success": False})
    going_on = (0.0, False, False, {"success": False})
    assert game.step("Lookup[bridge]") == (
        "No page is open to look something up on. Open one first: Search[title].",
        *going_on,
    )
    assert game.step("Search[best bridge engineer]")[0] == (
        "Could not find [best bridge engineer]. Similar: ['Marta Ellingsvold', 'Kallsund Bridge']."
    )
    assert game.step("search[kallsund bridge].") == (SHOWN, *going_on)
    assert game.step("Lookup[OPENED]") == (
        "(Result 1 / 1) The bridge was opened in 1909 by Karl [the mayor].",
        *going_on,
    )
    assert game.step("Finish[Karl [The Mayor].]") == ("Answer is CORRECT", 1.0, True, False, {"success": True})
    assert game.step("Finish[no]") == (OVER, 0.0, True, False, {"success": True})


def test_lookups_go_on_from_result_to_result_on_the_open_page() -> None:
    game = play(steps=20)
    game.step("Search[Kallsund Bridge]")
    said = [game.step(f"Lookup[{word}]")[0] for word in ("bridge", "Bridge", "bridge", "strait", "bridge", "owl")]
    assert said == [
        "(Result 1 / 2) The Kallsund Bridge is a swing bridge in Havnvik.",
        "(Result 2 / 2) The bridge was opened in 1909 by Karl [the mayor].",
        "No more results.",
        "(Result 1 / 1) It crosses a strait.",
        "(Result 1 / 2) The Kallsund Bridge is a swing bridge in Havnvik.",
        "No results on the page 'Kallsund Bridge'.",
    ]
    game.step("Search[Zanzibar]")  # finds nothing: the page stays open
    assert game.step("Lookup[strait]")[0] == "(Result 1 / 1) It crosses a strait."
    game.step("Search[Marta Ellingsvold]")
    assert game.step("Lookup[bridge]")[0] == "(Result 1 / 1) Her best work is the Kallsund Bridge."
    game.step("Search[Kallsund Bridge]")
    game.step("Search[Kallsund Bridge]")
    assert game.step("Lookup[bridge]")[0].startswith("(Result 1 / 2)")


def test_nothing_similar() -> None:
    assert play().step("Search[Zanzibar]")[0] == "Could not find [Zanzibar], nor anything similar."


@pytest.mark.parametrize(
    ("answer", "gold", "return_", "success"),
    [
        ("mayor", "Karl the mayor", 2 / 3, False),  # one word of two
        ("the mayor Karl", "Karl the mayor", 1.0, False),
        ("Olga", "Karl the mayor", 0.0, False),
        ("Yes!", "yes", 1.0, True),
        ("yes, Karl", "yes", 0.0, False),
        ("The", "the", 1.0, True),  # normalised to nothing, and yet right
    ],
)
def test_the_return_is_the_answers_f1(answer: str, gold: str, return_: float, success: bool) -> None:
    said, reward, terminated, truncated, info = play(gold).step(f"Finish[{answer}]")
    assert said == ("Answer is CORRECT" if success else "Answer is INCORRECT")
    assert reward == pytest.approx(return_)
    assert (terminated, truncated, info) == (True, False, {"success": success})


def test_the_steps_run_out_whatever_they_were() -> None:
    game = play(steps=3)
    ends = [game.step(action)[2:4] for action in ("Search[Kallsund Bridge]", "nonsense", "")]
    assert ends == [(False, False), (False, False), (False, True)]
    assert game.step("Finish[Karl the mayor]") == (OVER, 0.0, False, True, {"success": False})
    game.reset()
    assert game.step("Lookup[bridge]")[0].startswith("No page is open")


def test_an_answer_in_the_last_step_counts() -> None:
    assert play(steps=1).step("Finish[Karl the mayor]")[1:4] == (1.0, True, False)


@pytest.mark.parametrize(
    ("action", "echo"),
    [
        ("", "(empty)"),
        ("dance", "dance"),
        ("Search[a],\n Search[b]", "Search[a], Search[b]"),
        ("\x00\x07", "(empty)"),
        ("é" * 10_000, "é" * 99 + "…"),
    ],
)
def test_an_invalid_action_is_told_what_is_allowed(action: str, echo: str) -> None:
    assert play().step(action)[0] == f"Invalid action: {echo}. {ALLOWED}."


def test_a_long_search_is_not_repeated_in_full() -> None:
    assert len(play().step(f"Search[{'Havnvik ' * 2000}]")[0]) < 250


def test_what_passes_for_a_sentence_may_be_cut() -> None:
    store = OfflineDocuments([Page("Table", ("row " * 10_000,))])
    game = HotpotQA(QUESTION, store)
    assert len(game.step("Search[Table]")[0]) < 1_100
    assert len(game.step("Lookup[row]")[0]) < 1_100


def test_a_snapshot_is_the_whole_state() -> None:
    game = play()
    game.step("Search[Kallsund_Bridge]")
    game.step("Lookup[bridge]")
    state = json.loads(json.dumps(game.snapshot()))
    on = [game.step(action) for action in ("Lookup[bridge]", "Lookup[strait]", "Finish[mayor]")]
    other = play()
    other.restore(state)
    assert [other.step(action) for action in ("Lookup[bridge]", "Lookup[strait]", "Finish[mayor]")] == on
    other.restore(game.snapshot())
    assert other.step("Lookup[bridge]")[:4] == (OVER, 0.0, True, False)


def test_a_snapshot_of_a_page_that_is_gone_is_no_play() -> None:
    game = play()
    with pytest.raises(EnvironmentFailedError, match="there is no page 'Gone' any more"):
        game.restore(game.snapshot() | {"searched": "Gone"})


def test_tasks_are_the_files_questions_in_their_order(tmp_path: Path) -> None:
    data = {
        "train": written(tmp_path / "train.json", range(10, 30)),
        "test": written(tmp_path / "dev.json", range(5, 12)),
    }
    tasks = HotpotQATasks(data)
    assert tasks.tasks(Split.TEST, 3, offset=1) == [
        Task("hotpotqa", f"q{number}", Split.TEST, "bridge") for number in (6, 7, 8)
    ]
    assert [task.id for task in tasks.tasks(Split.TRAIN, 18)] == [f"q{number}" for number in range(12, 30)]
    with pytest.raises(ValueError, match=r"split train has 18 questions of .*train\.json, 19 were asked for"):
        tasks.tasks(Split.TRAIN, 19)  # 10 and 11 are test's
    with pytest.raises(ValueError, match=r"split validation has 0 questions \(data names no file for validation\)"):
        tasks.tasks(Split.VALIDATION, 1)
    assert tasks.tasks(Split.VALIDATION, 0) == []
    with pytest.raises(UnknownTaskError, match=r"no question 'q99' in .*dev\.json, .*train\.json"):
        tasks.make(Task("hotpotqa", "q99", Split.TEST))


def test_one_file_is_shared_by_the_splits(tmp_path: Path) -> None:
    tasks = HotpotQATasks(written(tmp_path / "dev.json", range(400)))
    found = {split: {task.id for task in tasks.tasks(split, count)} for split, count in counted(tasks).items()}
    assert sum(map(len, found.values())) == 400
    assert set.union(*found.values()) == {f"q{number}" for number in range(400)}
    assert len(found[Split.TRAIN]) > 250
    fewer = HotpotQATasks(written(tmp_path / "half.json", range(200)))
    for split, count in counted(fewer).items():
        assert {task.id for task in fewer.tasks(split, count)} <= found[split]


def counted(tasks: HotpotQATasks) -> dict[Split, int]:
    """How many tasks each split has, found as a user would."""
    counts = {}
    for split in Split:
        with pytest.raises(ValueError, match="were asked for") as error:
            tasks.tasks(split, 10_000)
        counts[split] = int(str(error.value).split(" has ")[1].split()[0])
    return counts


def test_documents_are_pages_but_no_questions(tmp_path: Path) -> None:
    data = written(tmp_path / "dev.json", range(5))
    more = tmp_path / "test_without_answers.json"
    more.write_text(json.dumps([{"_id": "t1", "question": "Who?", "context": [["Zanzibar", ["An island."]]]}]))
    task = Task("hotpotqa", "q1", Split.TEST)
    assert "Could not find" in HotpotQATasks(data).make(task).step("Search[Zanzibar]")[0]
    tasks = HotpotQATasks(data, documents=[str(more)])
    assert tasks.make(task).step("Search[zanzibar]")[0] == "An island."
    with pytest.raises(UnknownTaskError):
        tasks.make(Task("hotpotqa", "t1", Split.TEST))


def test_the_oracle_says_where_to_look_and_the_answer(tmp_path: Path) -> None:
    tasks = HotpotQATasks(written(tmp_path / "dev.json", range(3)))
    task = Task("hotpotqa", "q2", Split.TEST)
    oracle = tasks.oracle(task)
    assert oracle == (
        'Search[Kallsund Bridge] Lookup[opened] "The bridge was opened in 1909 by Karl [the mayor]." '
        'Search[Karl 2] "Karl 2 is a mayor." The answer is Karl 2: Finish[Karl 2].'
    )
    game = tasks.make(task)
    assert game.step("Search[Kallsund Bridge]")[0] == SHOWN
    assert game.step("Lookup[opened]")[0].endswith("The bridge was opened in 1909 by Karl [the mayor].")
    assert game.step("Search[Karl 2]")[0] == "Karl 2 is a mayor."
    assert game.step("Finish[Karl 2]")[4] == {"success": True}


def test_the_contract(tmp_path: Path) -> None:
    tasks = HotpotQATasks(written(tmp_path / "dev.json", range(60)))
    task = tasks.tasks(Split.TEST, 1)[0]
    number = task.id.removeprefix("q")
    wins = ["Search[Kallsund Bridge]", "Lookup[bridge]", "Search[Karl]", "Lookup[bridge]", f"Finish[Karl {number}]"]
    check_environment(tasks, task, wins)
    tasks.close()
    tasks.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"data: name a file of questions; get hotpot_train"),
        ({"data": ""}, r"data: name a file of questions"),
        ({"data": "gone.json"}, r"data: there is no gone\.json; get hotpot_train_v1\.1\.json"),
        ({"data": {"train": "FILE", "dev": "FILE"}}, r"data: 'dev' is not a split"),
        ({"data": {"train": 5}}, r"name a file or a folder, or one for each of train"),
        ({"data": "TEXT"}, r"notes\.txt: a file of questions ends in \.json or \.parquet"),
        ({"documents": "FILE"}, r"documents: .*Sequence"),
        ({"documents": ["gone.json"]}, r"there is no gone\.json"),
        ({"store": "online"}, r"store: Input should be 'offline' or 'wikipedia'"),
        ({"steps": 0}, r"steps: Input should be greater than 0"),
        ({"steps": True}, r"steps: Input should be a valid integer"),
        ({"steps": "6"}, r"steps: Input should be a valid integer"),
        ({"wikipedia": {"base_ulr": "x"}}, r"wikipedia: base_ulr: unknown key; the options are base_url, cache"),
        ({"stpes": 6}, r"stpes"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_read(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    (tmp_path / "notes.txt").write_text("no questions")
    (tmp_path / "broken.json").write_text("broken: only opening it would tell")
    files = {"FILE": str(tmp_path / "broken.json"), "TEXT": str(tmp_path / "notes.txt")}

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(item) for key, item in value.items()}
        return files.get(value, value) if isinstance(value, str) else value

    given = put({"data": "FILE"} | options) if options else {}
    with pytest.raises(ConfigError, match=says):
        make_taskset("hotpotqa", given)


def test_a_broken_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([official(0), official(1) | {"answer": None}]))
    with pytest.raises(ValueError, match=r"dev\.json: entry 1 \(q1\): answer is missing"):
        HotpotQATasks(str(path)).tasks(Split.TEST, 1)


def test_questions_without_paragraphs_need_wikipedia(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([official(0) | {"context": []}]))
    with pytest.raises(ValueError, match=r"no paragraphs \(context\) to search; take store: wikipedia"):
        HotpotQATasks(str(path)).tasks(Split.TEST, 1)


@pytest.mark.skipif(not (SHARED / "hotpotqa").is_dir(), reason="needs ../shared/data, or RETRO_SHARED_DATA")
def test_real_questions() -> None:
    files = {"train": "ircot500", "validation": "hipporag_train100", "test": "reflexion100"}
    data = {split: str(SHARED / "hotpotqa" / f"{name}.parquet") for split, name in files.items()}
    tasks = HotpotQATasks(data)
    assert len(tasks.tasks(Split.TRAIN, 488)) == 488  # 12 of the 500 are test's
    kinds = {task.kind for task in tasks.tasks(Split.TEST, 100)}
    assert kinds == {"bridge", "comparison"}
    for task in tasks.tasks(Split.TEST, 100):
        titles = [part.split("]")[0] for part in tasks.oracle(task).split("Search[")[1:]]
        answer = tasks.oracle(task).split("Finish[")[-1].removesuffix("].")
        game = tasks.make(task)
        for title in titles:
            assert "Could not find" not in game.step(f"Search[{title}]")[0]
        assert game.step(f"Finish[{answer}]")[1:4] == (1.0, True, False)
    check_environment(tasks)
