from pathlib import Path

import pytest

from posefleet.platform.comparison import ablation
from posefleet.platform.comparison import figures as comparison_figures

LADDER = """
rows:
  - {name: plain, set: {model.a: 1, model.b: 1}, paper: {AP: 50.0}}
  - {name: + b, set: {model.b: 2}, paper: {AP: 52.5, AR: 60.0}}
  - {name: "filtered, too", decode: {model.c: 3}, paper: {AP: 54.0}}
  - {name: deep, set: {model.a: 4}, paper: {AP: 51.0}}
"""

SCORES = {
    "plain": {0: {"AP": 0.1, "AR": 0.2}, 1: {"AP": 0.2, "AR": 0.2}, 2: {"AP": 0.3, "AR": 0.2}},
    "+ b": {0: {"AP": 0.2, "AR": 0.3}, 1: {"AP": 0.1, "AR": 0.4}, 2: {"AP": 0.6, "AR": 0.5}},
    "filtered, too": {0: {"AP": 0.1, "AR": 0.0}, 1: {"AP": 0.1, "AR": 0.0}, 2: {"AP": 0.1, "AR": 0.0}},
}


@pytest.fixture
def rows(tmp_path: Path) -> list[ablation.Row]:
    path = tmp_path / "mine.yaml"
    path.write_text(LADDER)
    return ablation.read_ladder(path)


def test_settings_add_up_and_rows_that_only_decode_keep_the_weights_before(rows: list[ablation.Row]) -> None:
    plain, with_b, filtered, deep = rows
    assert plain.trained == plain.decoded == {"model.a": 1, "model.b": 1}
    assert with_b.trained == with_b.decoded == {"model.a": 1, "model.b": 2}
    assert filtered.trained == with_b.trained and filtered.decoded == {"model.a": 1, "model.b": 2, "model.c": 3}
    assert deep.trained == {"model.a": 4, "model.b": 2, "model.c": 3}
    assert [row.training for row in rows] == ["mine-1-plain", "mine-2-b", "mine-2-b", "mine-4-deep"]


def test_rows_are_chosen_by_name_or_number_in_their_own_order(rows: list[ablation.Row]) -> None:
    assert ablation.choose(rows, ["4", "plain"]) == [rows[0], rows[3]]
    assert ablation.choose(rows, []) == rows
    with pytest.raises(ValueError, match=r"no row '5'; the ladder has 1 'plain', 2 '\+ b'"):
        ablation.choose(rows, ["5"])


def test_a_row_knows_its_share_of_the_longest_training(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(
        "rows:\n"
        "  - {name: a, epochs: 24, set: {model.a: 1}, paper: {AP: 50.0}}\n"
        "  - {name: b, set: {model.a: 2}, paper: {AP: 51.0}}\n"
        "  - {name: c, epochs: 32, set: {}, paper: {AP: 52.0}}\n"
    )
    assert [row.length for row in ablation.read_ladder(path)] == [0.75, 0.75, 1.0]


@pytest.mark.parametrize("row", ["{name: x, decode: {}, paper: {AP: 1}}", "{name: x, paper: {AP: 1}}"])
def test_a_ladder_without_a_training_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"rows:\n  - {row}\n")
    with pytest.raises(ValueError, match="row 'x' needs either set: or, after a row with set:, decode:"):
        ablation.read_ladder(tmp_path / "bad.yaml")


def test_the_table_shows_mean_and_spread_beside_the_paper(rows: list[ablation.Row]) -> None:
    head, _, plain, with_b, _ = ablation.as_markdown(rows[:3], SCORES).splitlines()
    assert head == "| row | AP here | lowest..highest | AP paper | AR here | AR paper |"
    assert plain == "| plain | 20.0 | 10.0..30.0 | 50.0 | 20.0 |  |"
    assert with_b == "| + b | 30.0 | 10.0..60.0 | 52.5 | 40.0 | 60.0 |"


def test_orderings_count_the_seeds_that_agree_with_the_paper(rows: list[ablation.Row]) -> None:
    up, down = ablation.orderings(rows[:3], SCORES)
    assert (up.lower, up.higher, up.agreeing) == ("plain", "+ b", 2)
    assert up.paper == pytest.approx(2.5) and down.agreeing == 0
    assert up.interval.value == pytest.approx(10) and down.interval.value == pytest.approx(-20)


def test_orderings_are_decided_by_students_range_over_the_seeds(rows: list[ablation.Row]) -> None:
    up, down = ablation.orderings(rows[:3], SCORES)
    # Differences 10, -10, 30: deviation 20, t(.975, 2) = 4.3027, so 4.3027 * 20 / sqrt(3) = 49.68 around the mean.
    assert (up.interval.low, up.interval.high) == pytest.approx((-39.68, 59.68), abs=0.01)
    assert (up.verdict, down.verdict) == ("undecided", "undecided")
    steady = ablation.Ordering("a", "b", 2.0, {0: 4.0, 1: 5.0, 2: 6.0})  # 4.3027 / sqrt(3) = 2.484
    assert (steady.interval.low, steady.interval.high) == pytest.approx((2.516, 7.484), abs=0.001)
    assert steady.verdict == "holds"
    assert ablation.Ordering("a", "b", 2.0, {0: -4.0, 1: -5.0, 2: -6.0}).verdict == "does not hold"
    single = ablation.Ordering("a", "b", 2.0, {0: 40.0})
    assert single.verdict == "undecided"
    text = ablation.orderings_as_markdown([up, steady, single]).splitlines()
    assert text[2] == "| plain < + b | 2.5 | +10.0 (-39.7..+59.7) | undecided | 2 of 3 |"
    assert text[3] == "| a < b | 2.0 | +5.0 (+2.5..+7.5) | holds | 3 of 3 |"
    assert text[4] == "| a < b | 2.0 | +40.0 | undecided | 1 of 1 |"


def test_the_figure_shows_every_seed_of_every_row() -> None:
    figure = comparison_figures.ablation_figure(
        {"plain": [0.1, 0.2, 0.3], "+ b": [0.2, 0.1, 0.6]}, {"plain": 0.5, "+ b": 0.525}
    )
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["plain", "+ b"]
    assert [line.get_xdata()[0] for line in left.get_lines()[1::2]] == pytest.approx([0.2, 0.3])
    assert list(right.get_lines()[0].get_xdata()) == [0.5, 0.525]


def test_where_the_paper_falls_the_later_row_is_the_lower_one(rows: list[ablation.Row]) -> None:
    scores = {"filtered, too": {0: {"AP": 0.3}}, "deep": {0: {"AP": 0.2}}}
    (ordering,) = ablation.orderings(rows[2:], scores)
    assert (ordering.lower, ordering.higher) == ("deep", "filtered, too") and ordering.agreeing == 1
