"""The page from what was measured: self-contained, safe against what models write, and the table beside it."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from made_up_evaluation import HOSTILE, RATES, described, made_up, write_run
from rich.console import Console

from retro.artifacts import write_json
from retro.evaluation import figures
from retro.evaluation.figures import arm_styles, checkpoint_series, success_by_trial
from retro.evaluation.pages import stage_metrics, write_progress
from retro.evaluation.report import (
    BROWSED_TASKS,
    NothingMeasuredError,
    Paths,
    browser_data,
    read_results,
    rebuild_report,
)
from retro.evaluation.results import SCOPE, Results
from retro.evaluation.table import best_learned_arm, results_table
from retro.lease import FileLease


class Elements(HTMLParser):
    """Every element and address of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed, but not drawn, which takes most of a page's time."""
    monkeypatch.setattr(figures, "to_svg", lambda figure: b"<svg/>")
    monkeypatch.setattr(figures, "save_png", lambda figure, path: path.touch())


words_alone = pytest.mark.usefixtures("undrawn")
"""Of a test that looks at no figure."""


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_the_page_is_self_contained_and_whole(run_dir: Path) -> None:
    page = rebuild_report(run_dir).read_text(encoding="utf-8")
    elements = parse(page)
    assert elements.addresses and all(
        address.startswith("data:image/svg+xml;base64,") for address in elements.addresses
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for heading in (
        "Success by attempt",
        "Arms",
        "Paired comparisons",
        "How the stages learnt",
        "Reward model",
        "Episodes",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert (
        "ppo-env-bon4" in page
        and "0.712 (0.68 to 0.75)" in page
        and "Reliability diagram" in page
        and "collect 101" in page
    )
    assert (run_dir / "evaluation" / "success_by_trial.png").read_bytes().startswith(b"\x89PNG")


@words_alone
def test_what_a_model_writes_never_becomes_markup(run_dir: Path) -> None:
    page = rebuild_report(run_dir).read_text(encoding="utf-8")
    elements = parse(page)
    assert elements.tags.count("script") == 2 and not elements.handlers
    assert "alert(2)>" not in page and "<img src=x" not in page
    data = json.loads(re.search(r'id="episodes">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    episodes = [e for by_task in data["arms"].values() for chain in by_task.values() for e in chain if e["reflection"]]
    assert episodes and all(HOSTILE in episode["reflection"]["text"] for episode in episodes)
    assert all(e["recalled"] == [["reflection-0", e["reflection"]["text"]]] for e in episodes)


@words_alone
def test_hostile_names_are_escaped(run_dir: Path) -> None:
    path = run_dir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    results["arms"]["<b>mine</b>"] = results["arms"].pop("sft")
    results["notes"] = ["<i>note</i>"]
    path.write_text(json.dumps(results))
    page = rebuild_report(run_dir).read_text()
    assert "<b>mine" not in page and "&lt;b&gt;mine&lt;/b&gt;" in page and "<i>note" not in page


def test_the_report_needs_results_alone(run_dir: Path) -> None:
    for path in ("metrics.jsonl", "reward/reward.json", "evaluation/episodes.jsonl"):
        (run_dir / path).unlink()
    page = rebuild_report(run_dir).read_text()
    assert "How the stages learnt" not in page and "<h2>Arms</h2>" in page


@words_alone
def test_an_unfinished_run_has_a_page_about_its_stages(run_dir: Path) -> None:
    for name, status in (("collect", "complete"), ("ppo", "running")):
        manifest = {"stage": name, "status": status, "seconds": 61.4, "processes": 1}
        (run_dir / name).mkdir(exist_ok=True)
        write_json(run_dir / name / "stage.json", manifest)
    write_json(run_dir / "collect" / "collect.json", {"episodes": 48, "splits": {"train": {"retries": 40}}})
    page = write_progress(run_dir).read_text(encoding="utf-8")
    for said in (
        "<td>collect</td>",
        "interrupted; the same command",
        "splits · train · retries",
        "Reliability diagram",
    ):
        assert said in page
    assert "How the stages learnt" in page and not parse(page).handlers
    lease = FileLease(run_dir / "lease.json", "run")
    assert "<td>running</td>" in write_progress(run_dir).read_text(encoding="utf-8")
    killed = (run_dir / "lease.json").read_bytes()
    lease.release()
    (run_dir / "lease.json").write_bytes(killed)
    assert "<td>running</td>" not in write_progress(run_dir).read_text(encoding="utf-8")


@words_alone
def test_a_torn_metrics_line_is_left_out(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    assert "How the stages learnt" in rebuild_report(run_dir).read_text()


@words_alone
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"best_step": 20, "best_return": 0.7214, "best_interval": [0.65, 0.79]},
            "The best checkpoint is step 20: mean return 0.721 on the validation contexts, "
            "95 % interval 0.650 to 0.790 by bootstrap over tasks.",
        ),
        ({"best_step": 20, "best_return": 0.5}, "is step 20: mean return 0.500 on the validation contexts."),
        ({"best_step": 30, "best_return": None, "best_interval": None}, "is step 30, the last one: no validation"),
    ],
)
def test_the_best_checkpoint_is_named_with_its_interval(run_dir: Path, state: dict[str, object], said: str) -> None:
    assert "best checkpoint" not in rebuild_report(run_dir).read_text(encoding="utf-8")
    write_json(run_dir / "ppo" / "best" / "state.json", state)
    assert said in " ".join(rebuild_report(run_dir).read_text(encoding="utf-8").split())


def test_an_intervals_ends_have_no_curve_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keys = ("validation_return", "validation_return_low", "validation_return_high", "best_step", "best_return_low")
    lines = [{"stage": "ppo", "step": step, **dict.fromkeys(keys, 0.1 * step)} for step in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(stage_metrics(path)["ppo"]) == ["validation_return"]


def test_every_stage_but_the_evaluation_has_learning_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stages = ("sft", "mine", "evaluate")
    lines = [
        {"stage": stage, "step": step, "seconds": step, "loss": 1 / (1 + step)} for stage in stages for step in (0, 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stage_metrics(path) == {key: {"loss": [(0, 1.0), (1, 0.5)]} for key in ("sft", "mine")}


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NothingMeasuredError, match="evaluate the run first: retro evaluate"):
        rebuild_report(tmp_path)


def test_checkpoints_of_one_run_make_a_curve_over_steps(run_dir: Path) -> None:
    path = run_dir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    for step in (20, 10, 30):
        of_step = results["arms"][f"at step {step}"] = json.loads(json.dumps(results["arms"]["ppo-env"]))
        of_step["parts"]["policy"] |= {"stage": None, "name": "mine/ppo", "path": f"checkpoint-{step}", "step": step}
    assert checkpoint_series(results["arms"]) == [["at step 10", "at step 20", "at step 30"]]
    path.write_text(json.dumps(results))
    assert "Over training steps" in rebuild_report(run_dir).read_text()


@words_alone
def test_the_page_says_what_the_arms_are_made_of(run_dir: Path) -> None:
    table = rebuild_report(run_dir).read_text().partition("What the arms are made of")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert ["ppo-env-bon4", "trained", "ppo-env", "best_of, n: 4", "window, size: 3", "0.0", "4"] in rows


def test_results_without_parts_are_refused_with_the_command_that_evaluates_again(run_dir: Path) -> None:
    path = run_dir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    del results["arms"]["sft"]["parts"]
    path.write_text(json.dumps(results))
    with pytest.raises(NothingMeasuredError, match=f"evaluate the run again: retro evaluate {run_dir}/config.yaml"):
        rebuild_report(run_dir)


def test_the_browser_spreads_its_tasks_and_says_how_many_there_are() -> None:
    results, records = made_up(["reflexion"], 200)
    data = browser_data(results, records)
    shown = [task["id"] for task in data["tasks"]]
    assert data["total"] == 200 and len(shown) == len(set(shown)) == BROWSED_TASKS
    assert set(data["arms"]["reflexion"]) == set(shown)


def test_the_table_has_every_arm_and_attempt(run_dir: Path) -> None:
    results = read_results(Paths(run_dir, run_dir / "evaluation").results)
    console = Console(width=140, record=True, file=(run_dir / "out").open("w"))
    console.print(results_table(results))
    text = console.export_text()
    assert all(arm in text for arm in results["arms"]) and "attempt 4" in text


@words_alone
def test_a_bank_stands_beside_the_arms_that_played_with_it(run_dir: Path) -> None:
    paths = Paths(run_dir, run_dir / "evaluation")
    results = read_results(paths.results)
    assert "<h3>Banks</h3>" not in rebuild_report(run_dir).read_text(encoding="utf-8")
    assert "bank of" not in _printed(results)
    bank = {"digest": "d", "memory": {}, "episodes": 1240, "actor_tokens": 312_450, "entries": 37, "bytes": 15_310}
    results["arms"]["sft"]["bank"] = bank
    write_json(paths.results, results)
    page = rebuild_report(run_dir).read_text(encoding="utf-8").split("<h3>Banks</h3>")[1].split("</table>")[0]
    assert re.findall("<tr><td>(.*?)</td>", page) == ["sft"]
    assert all(f">{figure}</td>" in page for figure in ("37", "15,310", "1,240", "312,450"))
    assert f"{100 * results['arms']['sft']['success_by_trial'][0]:.1f} <small>" in page
    says = "with a bank of 37 entries, 15,310 bytes, from 1,240 episodes that took 312,450 tokens of the actor."
    assert f"sft: {says}" in _printed(results)
    for arm in results["arms"].values():
        arm["bank"] = {**bank, "entries": None}
    assert f"All arms: {says}".replace("37 entries, ", "") in _printed(results)


def _printed(results: Results) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(results_table(results))
    return " ".join(console.export_text().split())


@words_alone
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_and_p_values_say_what_they_are_about(tmp_path: Path, seeds: int) -> None:
    run = write_run(tmp_path / "pooled", ["retry-sampled", "reflexion", "sft", "ppo-env"], 30, seeds)
    results = read_results(Paths(run, run / "evaluation").results)
    page = " ".join(rebuild_report(run).read_text(encoding="utf-8").split())
    arms, comparisons = page.split("<h2>Arms</h2>")[1].split("<h2>Paired comparisons</h2>")
    assert SCOPE in arms and SCOPE in comparisons
    assert ("the spread between seeds is not in them" in arms) == (seeds > 1)
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(results_table(results))
    assert ("training again, with another seed" in " ".join(console.export_text().split())) == (seeds > 1)


def test_level_arms_have_no_best_among_them(run_dir: Path) -> None:
    results = read_results(Paths(run_dir, run_dir / "evaluation").results)
    two = [results["arms"][name]["return_by_trial"][-1] for name in ("ppo-env", "ppo-env-bon4")]
    assert two[0] != two[1] and two[0] == pytest.approx(two[1])  # level, up to rounding
    assert best_learned_arm(results) is None
    results["arms"]["ppo-env"]["return_by_trial"][-1] += 0.01
    assert best_learned_arm(results) == "ppo-env"


def test_arms_keep_their_colours_and_best_of_n_differs_by_its_dash() -> None:
    arms = described([*RATES, "vague"])
    for name in ("mine", "other"):
        arms[name] = json.loads(json.dumps(arms["ppo-env"]))
        arms[name]["parts"]["policy"] |= {"stage": None, "name": name, "path": f"runs/{name}"}
    styles = {name: (style.colour, style.marker, style.line) for name, style in arm_styles(arms).items()}
    assert styles == {
        "one-shot": ("#8a8a8a", ".", "-"),
        "retry": ("#8a8a8a", "x", "-"),
        "retry-sampled": ("#5f5f5f", "s", "-"),
        "shuffled": ("#CC79A7", "D", "-"),
        "reflexion": ("#E69F00", "^", "-"),
        "sft": ("#56B4E9", "v", "-"),
        "ppo-rm": ("#009E73", "P", "-"),
        "ppo-rm-bon4": ("#009E73", "P", "--"),
        "ppo-rm-bon8": ("#009E73", "P", ":"),
        "ppo-env": ("#0072B2", "o", "-"),
        "ppo-env-bon4": ("#0072B2", "o", "--"),
        "ppo-env-bon8": ("#0072B2", "o", ":"),
        "oracle": ("#222222", "*", "-"),
        "vague": ("#8a8a8a", "v", "-"),
        "mine": ("#D55E00", "h", "-"),
        "other": ("#7B4FA3", "h", "-"),
    }
    results, _ = made_up(list(RATES), 12, seeds=2)
    left, right = success_by_trial(results).axes
    labels = sorted(text.get_position()[1] for text in left.texts)
    assert len(labels) == len(RATES) == len(right.get_yticks())
    assert min(b - a for a, b in pairwise(labels)) > 0.015  # no two names on top of each other


def test_an_arm_with_a_shuffled_bank_is_never_the_best() -> None:
    results, _ = made_up(["retry-sampled", "sft", "ppo-env"], 60)
    assert best_learned_arm(results) == "ppo-env"
    parts = results["arms"]["ppo-env"]["parts"]
    parts["memory"] = {**parts["memory"], "shuffled": True}
    assert best_learned_arm(results) == "sft"
