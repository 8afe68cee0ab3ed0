import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from retro.training.reward_metrics import (
    ScoredGroup,
    bootstrap_by_task,
    calibration_error,
    reliability,
    reward_report,
    unequal_pairs,
    weighted_auc,
    within_group_accuracy,
)


def group(task: str, scores: tuple[float, ...], ratings: tuple[float, ...]) -> ScoredGroup:
    return ScoredGroup(task, "household", scores, ratings)


def test_pairs_are_those_that_differ_by_more_than_the_threshold() -> None:
    assert unequal_pairs([0.0, 1.0, 1.0]) == [(1, 0), (2, 0)]
    assert unequal_pairs([0.0, 0.3, 1.0], threshold=0.3) == [(2, 0), (2, 1)]


def test_accuracy_counts_unequal_pairs_of_one_group_only_and_a_tie_as_half() -> None:
    groups = [
        group("a", (3.0, 1.0, 2.0), (1.0, 0.0, 0.0)),  # 2 of 2
        group("a", (0.0, 0.0), (1.0, 0.0)),  # a tie: ½ of 1
        group("b", (9.0, 8.0), (0.0, 1.0)),  # 0 of 1
        group("b", (1.0, 2.0), (0.5, 0.5)),  # no pair
    ]
    assert within_group_accuracy(groups) == pytest.approx(2.5 / 4)
    report = reward_report(groups, "bradley_terry", 0.0, 200, 0)
    assert report["accuracy"]["value"] == pytest.approx(2.5 / 4)
    assert (report["pairs"], report["reflections"], report["groups"], report["tasks"]) == (4, 9, 4, 2)
    low, high = report["accuracy"]["ci95"]
    assert low == pytest.approx(0.0)  # both draws are task b
    assert high == pytest.approx(2.5 / 3)  # both are task a


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_auc_is_mann_whitneys_also_with_ties_and_weights_repeat_rows(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in rows])
    labels = np.array([float(label) for _, label in rows])
    reference = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / (labels.sum() * (1 - labels).sum())
    assert weighted_auc(scores, labels, np.ones(len(rows))) == pytest.approx(reference)
    weights = np.arange(len(rows)) % 3
    repeats = np.repeat(np.arange(len(rows)), weights)
    repeated = weighted_auc(scores[repeats], labels[repeats], np.ones(len(repeats)))
    assert weighted_auc(scores, labels, weights.astype(float)) == pytest.approx(repeated, nan_ok=True)


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(weighted_auc(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.ones(2)))
    assert np.isnan(weighted_auc(np.array([]), np.array([]), np.array([])))


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    outcome = np.array([0.0, 1.0, 1.0, 1.0])
    # bin 0: |0.05 − 0.5| · 2/4, bin 9: |0.95 − 1| · 2/4
    assert calibration_error(probability, outcome, np.ones(4)) == pytest.approx(0.45 / 2 + 0.05 / 2)
    assert [item["count"] for item in reliability(probability, outcome)] == [2, 2]
    assert reliability(np.array([1.0]), np.array([1.0]))[0]["to"] == 1.0


def test_a_calibrated_classifier_has_a_small_error_and_an_overconfident_one_has_not() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=4000)
    ratings = (generator.random(4000) < 1 / (1 + np.exp(-logits))).astype(float)
    honest = [group(str(i), (float(logits[i]),), (float(ratings[i]),)) for i in range(4000)]
    loud = [group(str(i), (float(logits[i]) * 5,), (float(ratings[i]),)) for i in range(4000)]
    assert reward_report(honest, "bce", 0.0, 50, 0)["ece"]["value"] < 0.03
    assert reward_report(loud, "bce", 0.0, 50, 0)["ece"]["value"] > 0.1


def test_a_classifiers_accuracy_stands_beside_that_of_the_more_frequent_label() -> None:
    groups = [
        group("a", (2.0,), (1.0,)),  # accepted, and predicted so
        group("a", (1.0,), (0.0,)),  # rejected, predicted accepted
        group("b", (-1.0,), (0.25,)),  # rejected, since its rating is not above the threshold; predicted so
        group("b", (-1.0,), (0.0,)),  # likewise
        group("b", (-1.0,), (1.0,)),  # accepted, predicted rejected
    ]
    labels = reward_report(groups, "bce", 0.25, 200, 0)["labels"]
    assert labels["accepted"] == 2
    assert labels["accuracy"]["value"] == labels["majority"]["value"] == pytest.approx(3 / 5)
    assert labels["difference"]["value"] == pytest.approx(0.0)
    assert labels["accuracy"]["ci95"] == pytest.approx([1 / 2, 2 / 3])  # both draws are task a, or both task b
    assert labels["majority"]["ci95"] == pytest.approx([1 / 2, 2 / 3])
    assert labels["difference"]["ci95"] == pytest.approx([0.0, 0.0])
    assert "labels" not in reward_report(groups, "bradley_terry", 0.25, 200, 0)  # its scores have no zero
    nothing = {"value": None, "ci95": None}
    assert reward_report([], "bce", 0.0, 10, 0)["labels"] == {
        "accepted": 0,
        **dict.fromkeys(("accuracy", "majority", "difference"), nothing),
    }


def test_the_majority_may_be_the_accepted_label() -> None:
    groups = [group("a", (-1.0,), (1.0,)), group("b", (-1.0,), (1.0,)), group("c", (-1.0,), (0.0,))]
    labels = reward_report(groups, "bce", 0.0, 50, 0)["labels"]
    assert labels["majority"]["value"] == pytest.approx(2 / 3)
    assert labels["accuracy"]["value"] == pytest.approx(1 / 3)
    assert labels["difference"]["value"] == pytest.approx(-1 / 3)


def test_the_interval_resamples_tasks_not_rows() -> None:
    tasks = np.repeat(np.arange(20), 50)
    values = np.repeat(np.arange(20) % 2, 50).astype(float)  # rows of a task agree
    low, high = bootstrap_by_task(tasks, lambda weights: float((weights * values).sum() / weights.sum()), 2000, 0)
    # the standard error over 20 tasks is 0.11; over 1,000 independent rows it would be 0.016
    assert 0.2 < low < 0.35
    assert 0.65 < high < 0.8


def test_nothing_to_measure_is_null_not_an_error() -> None:
    report = reward_report([group("a", (1.0,), (0.0,))], "bradley_terry", 0.0, 10, 0)
    assert report["accuracy"] == {"value": None, "ci95": None}
    assert report["auc"]["value"] is None
    assert reward_report([], "bce", 0.0, 10, 0)["pairs"] == 0


def test_averages_of_equal_ratings_make_no_pair_and_no_label() -> None:
    average = (0.2 + 0.2 + 0.2) / 3  # a little above .2 as a float
    assert unequal_pairs([average, 0.2, 0.2]) == []
    report = reward_report([group("a", (1.0, 2.0), (average, 0.2))], "bce", 0.2, 10, 0)
    assert report["pairs"] == 0
    assert report["auc"]["value"] is None  # neither is accepted: one label only
