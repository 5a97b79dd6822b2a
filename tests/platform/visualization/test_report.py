"""Tests figures by what is plotted, tables by their text, and reports by the files that a sink receives."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posefleet.data.evaluation.bootstrap import differences
from posefleet.data.evaluation.evaluate import Evaluation, evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.images import decode_image
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People, Poses, Sample, TargetPoints, collate
from posefleet.platform.comparison.compare import score_table
from posefleet.platform.comparison.figures import comparison_figure
from posefleet.platform.visualization import figures, plots, report


def people_at(*corners: tuple[float, float]) -> list[dict]:
    index = np.arange(17)
    points = [np.stack([x + 60.0 * (index % 4), y + 60.0 * (index // 4)], 1) for x, y in corners]
    return [
        {
            "keypoints": np.column_stack([p, np.full(17, 2)]).ravel().tolist(),
            "bbox": [x, y, 180, 240],
            "area": 10_000.0,
        }
        for p, (x, y) in zip(points, corners, strict=True)
    ]


def poses_like(people: list[dict], shift: float = 0.0) -> Poses:
    keypoints = torch.tensor([p["keypoints"] for p in people]).view(-1, 17, 3)[..., :2] + shift
    return Poses(keypoints, torch.ones(keypoints.shape[:2]), torch.linspace(0.9, 0.5, len(people)))


def evaluation(shift: float = 0.0, score_rule: str = "mean keypoint score") -> Evaluation:
    people = people_at((10, 10), (300, 10))
    ground_truth = GroundTruth.from_records([(1, (640, 480), people)])
    return evaluate(ground_truth, {1: poses_like(people, shift)}, COCO17, score_rule=score_rule)


@pytest.fixture(scope="module")
def shifted() -> Evaluation:
    return evaluation(shift=6.0)


@pytest.fixture(scope="module")
def nobody() -> Evaluation:
    return evaluate(GroundTruth.from_records([(1, (640, 480), [])]), {}, COCO17)


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        raise AssertionError("reports log files only")

    def log_bytes(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def store(self) -> None:
        raise AssertionError("reports log files only")


def test_a_figure_is_saved_as_a_png(tmp_path: Path) -> None:
    plots.save_png(plots.new_figure("Title", "x", "y")[0], tmp_path / "figure.png")
    image = decode_image((tmp_path / "figure.png").read_bytes())
    assert image.shape == (520, 936, 3)
    assert image.std() > 5


def test_losses_of_very_different_size_get_a_logarithmic_scale() -> None:
    history = [(step, {"total": 2.0, "heatmap": 1.0}) for step in range(10)]
    assert figures.loss_curves(history).axes[0].get_yscale() == "linear"
    history = [(step, {"total": 2.0, "heatmap": 0.01}) for step in range(10)]
    assert figures.loss_curves(history).axes[0].get_yscale() == "log"


def test_a_loss_is_smoothed_and_its_last_value_named() -> None:
    history = [(step, {"total": 2.0 + (-1) ** step}) for step in range(100)]
    axes = figures.loss_curves(history).axes[0]
    raw, smooth = axes.get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), [2.0 + (-1) ** step for step in range(100)])
    assert smooth.get_ydata()[-1] == pytest.approx(2 - 1 / 3)  # the last three are 1, 3, 1
    assert axes.get_legend_handles_labels()[1] == ["total  1.67"]


def test_a_loss_that_starts_late_is_drawn_from_there() -> None:
    history = [(0, {"total": 1.0}), (10, {"total": 0.9, "score": 0.5}), (20, {"score": 0.4})]
    total, score = figures.loss_curves(history).axes[0].get_lines()
    assert total.get_xdata().tolist() == [0, 10]
    assert score.get_xdata().tolist() == [10, 20]


def test_an_empty_history_is_noted_in_the_figure() -> None:
    for figure in (figures.loss_curves([]), figures.ap_curve([])):
        assert figure.axes[0].texts[0].get_text() == "nothing recorded yet"


def test_the_best_ap_is_marked() -> None:
    history = [(0, {"AP": float("nan")}), (2, {"AP": 0.3}), (4, {"AP": 0.41}), (6, {"AP": 0.38})]
    axes = figures.ap_curve(history).axes[0]
    assert axes.texts[0].get_text() == "0.410"
    assert axes.get_lines()[1].get_xdata()[0] == 4
    assert axes.get_ylim()[0] == 0


def test_axes_begin_at_zero_where_all_is_zero() -> None:
    zeros = [(epoch, {"AP": 0.0, "AP50": 0.0}) for epoch in range(3)]
    times = {name: {1: 20.0, 2: 30.0} for name in "ab"}
    curve = figures.ap_curve(zeros).axes[0]
    bars = comparison_figure({"a": 0.0, "b": 0.0}, times).axes[0]
    assert curve.get_ylim() == (0.0, 0.1) and bars.get_xlim() == (0.0, 0.1)
    assert comparison_figure({"a": 0.5, "b": float("nan")}, times).axes[0].get_xlim() == pytest.approx((0.0, 0.56))


def test_legends_cover_no_line() -> None:
    losses = [(step, {name: 1.0 / (step + 1) for name in ("total", "cls", "init", "refine")}) for step in range(9)]
    scores = [(epoch, {"AP": 0.1 * epoch, "AP50": 0.1 * epoch}) for epoch in range(5)]
    times = {name: {1: 20.0, 2: 30.0} for name in "ab"}
    for figure in (
        figures.loss_curves(losses),
        figures.ap_curve(scores),
        comparison_figure({"a": 0.1, "b": 0.2}, times),
    ):
        figure.canvas.draw()
        for axes in figure.axes:
            if legend := axes.get_legend():
                assert not axes.get_window_extent().shrunk(0.99, 0.99).overlaps(legend.get_window_extent())


def test_precision_is_drawn_at_every_threshold_with_its_ap(shifted: Evaluation) -> None:
    lines = figures.precision_recall(shifted).axes[0].get_lines()
    assert len(lines) == 10
    for line, precision in zip(lines, shifted.precision, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), precision)
    assert lines[0].get_label() == f"0.50   {shifted.statistics['AP50']:.3f}"


def test_bars_are_as_long_as_the_ap(shifted: Evaluation) -> None:
    axes = figures.keypoint_ap_bars(shifted).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], shifted.keypoint_ap)
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), shifted.keypoint_oks)
    assert axes.get_yticklabels()[9].get_text() == "left wrist"


def test_error_bars_sum_to_one(shifted: Evaluation) -> None:
    axes = figures.error_split_bars(shifted).axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(18.0)
    assert "0 of 2 people missed" in axes.get_xlabel()
    # 6 px right and down of a nose: exp(-72 / (2 * 10,000 * 0.052^2)) = 0.26, and 60 px from anything else.
    assert [bar.get_width() for bar in axes.patches][1::18] == [0, 0, 0, 0, 1.0]


def test_figures_of_nothing_are_drawn_too(nobody: Evaluation) -> None:
    for figure in (figures.precision_recall, figures.keypoint_ap_bars, figures.error_split_bars):
        assert plots.png_bytes(figure(nobody))


def test_the_comparison_ranks_runs_and_marks_the_best(shifted: Evaluation) -> None:
    better = evaluation()
    assert shifted.matches is not None and better.matches is not None
    minus = differences({"worse": shifted.matches, "better": better.matches})
    table = score_table({"worse": shifted, "better": better}, minus)
    lines = table.splitlines()
    assert lines[2].startswith("| better | **1.000** |")
    assert lines[3].startswith("| worse |")
    assert "**" not in lines[3].split("|")[2]
    assert lines[0].endswith("| AP minus the best |") and {line.count("|") for line in lines[:4]} == {13}
    assert lines[2].endswith("|  |")
    assert lines[3].endswith(f"| {shifted.ap - 1:+.3f} ({shifted.ap - 1:+.3f}..{shifted.ap - 1:+.3f}) |")  # one image
    assert lines[-1].startswith("All: pycocotools") and "95% of draws of images" in lines[-1]
    alone = score_table({"alone": shifted}, {})
    assert "minus the best" not in alone and "draws" not in alone


def test_the_comparison_warns_when_scores_were_made_differently(shifted: Evaluation) -> None:
    other = replace(shifted, protocol=replace(shifted.protocol, images=3))
    table = score_table({"a": shifted, "b": other}, {})
    assert "Not made the same way, compare with care:" in table
    assert "- b: pycocotools" in table and "3 images" in table


def test_an_evaluation_logs_table_figures_and_overlays(shifted: Evaluation) -> None:
    """The network saw the image at half its size; poses come in original pixels."""
    keypoints = torch.tensor([p["keypoints"] for p in people_at((10, 10))]).view(1, 17, 3)
    person = People(
        keypoints[..., :2] / 2,
        torch.full((1, 17), 2, dtype=torch.uint8),
        torch.tensor([[5.0, 5.0, 95.0, 125.0]]),
        torch.tensor([2500.0]),
        torch.tensor([False]),
    )
    image = np.zeros((150, 240, 3), np.uint8)
    half = np.array([[0.5, 0, 0], [0, 0.5, 0]])
    batch = collate([Sample(image, person, 1, half, (480, 300)), Sample(image, person, 2, half, (480, 300))])
    poses = [poses_like(people_at((10, 10))), Poses.empty(17)]
    sink = Recorder()
    report.log_evaluation(sink, shifted, [(batch, poses)], COCO17, step=1200, most=2)
    folder = "evaluation/step-0001200"
    assert set(sink.files) == {
        f"{folder}/{name}"
        for name in (
            "table.txt", "overlays.jpg", "precision_recall.png", "keypoint_ap_bars.png", "error_split_bars.png"
        )
    }  # fmt: skip
    assert "AP50" in sink.files[f"{folder}/table.txt"].decode()

    # Two pairs in a row; each image is enlarged to 480 x 300, without the padding of the batch.
    sheet = decode_image(sink.files[f"{folder}/overlays.jpg"])
    assert sheet.shape == (300 + 24 + 24, 4 * 480 + 2 * 18 + 18, 3)
    drawn, prediction = sheet[36:336, 12:492].astype(int), sheet[36:336, 498:978].astype(int)
    figure = (slice(4, 40), slice(4, 240))  # nose, eyes and left ear, clear of the score's label
    assert drawn[figure].max() > 200
    assert np.abs(drawn[30:250, 30:250] - prediction[30:250, 30:250]).mean() < 8
    assert np.abs(sheet[36:336, 1500:1900].astype(int)).mean() < 8  # nobody predicted in the second image


def test_targets_are_logged_as_one_contact_sheet() -> None:
    sample = Sample(np.zeros((64, 96, 3), np.uint8), People.empty(17), 1, np.eye(3)[:2], (96, 64))
    target = TargetPoints("cells", torch.tensor([[48.0, 32.0]]), torch.tensor([0]), torch.tensor([8.0]))
    sink = Recorder()
    report.log_targets(sink, collate([sample] * 3), [[target]] * 3, COCO17)
    sheet = decode_image(sink.files["targets/first_images.jpg"])
    assert sheet.shape == (320 + 26 + 12, 3 * 480 + 4 * 6, 3)
    assert sheet[6 + 160, 6 + 240].max() > 150
