"""The page is tested by what its reader finds: names, numbers, images."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from small_settings import small_settings

from posefleet.data.evaluation.bootstrap import difference
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.comparison import compare as comparison
from posefleet.platform.comparison import gallery
from posefleet.platform.comparison import html as page
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluation_set, ground_truth
from posefleet.platform.monitoring.interruptions import Losses
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit

Pages = tuple[list[comparison.Entry], str]


class Reader(HTMLParser):
    """Text, and attributes of every tag."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[tuple[str, dict[str, str | None]]]()
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [str(attributes[name]) for found, attributes in self.tags if found == tag and name in attributes]


@pytest.fixture(scope="module")
def trained(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> comparison.Entry:
    folder = tmp_path_factory.mktemp("page") / "run"
    experiment = build_experiment(small_settings(people_shards, folder.parent))
    fit(experiment, LocalWorker(device="cpu"), CheckpointStore(str(folder / "checkpoints")))
    return comparison.score_run("run", str(folder), LocalWorker(device="cpu"), repeats=1)


def predicting(trained: comparison.Entry, name: str, noise: float, lr: float) -> comparison.Entry:
    """The run, had it found everybody up to ``noise`` pixels, and been trained with learning rate ``lr``."""
    people = ground_truth(evaluation_set(trained.experiment, EvalTransform(trained.experiment.data.resize, COCO17)))
    random = torch.Generator().manual_seed(0)
    poses = {}
    for row, image_id in enumerate(people.image_ids.tolist()):
        keypoints = torch.tensor(people.keypoints[people.image == row], dtype=torch.float32)
        keypoints = keypoints + noise * torch.randn(keypoints.shape, generator=random)
        poses[image_id] = Poses(keypoints, torch.ones(keypoints.shape[:2]), torch.linspace(0.9, 0.8, len(keypoints)))
    optim = dataclasses.replace(trained.experiment.optim, lr=lr)
    return dataclasses.replace(
        trained,
        name=name,
        experiment=dataclasses.replace(trained.experiment, optim=optim),
        evaluation=evaluate(people, poses, COCO17),
        poses=poses,
    )


@pytest.fixture(scope="module")
def compared(trained: comparison.Entry) -> Pages:
    entries = [
        predicting(trained, "far & wide", 4.0, 1e-3),
        predicting(trained, "<b>near</b>", 1.0, 2e-3),
        predicting(trained, "middling", 2.0, 1e-3),
    ]
    return entries, page.render(entries, comparison.differences(entries), about="Three <i>runs</i>.", warnings=["Hm."])


def test_the_page_shows_what_interruptions_cost_where_there_were_any(trained: comparison.Entry) -> None:
    entries = [predicting(trained, name, 1.0, 1e-3) for name in ("calm", "disturbed")]
    assert "Interruptions" not in Reader(page.render(entries, {})).text
    entries[1] = dataclasses.replace(entries[1], losses=Losses(count=2, steps_again=37, device_seconds=4321.4))
    reader = Reader(page.render(entries, {}))
    assert "Interruptions" in reader.text and "steps done again" in reader.text
    assert "37" in reader.text.split() and "4321" in reader.text.split()


def test_runs_are_listed_best_first_and_names_are_escaped(compared: Pages) -> None:
    entries, content = compared
    assert "<b>near</b>" not in content and "<i>runs</i>" not in content
    text = Reader(content).text
    assert "Three <i>runs</i>." in text and "Hm." in text
    assert text.index("<b>near</b>") < text.index("middling") < text.index("far & wide")
    for entry in entries:
        assert f"{entry.evaluation.ap:.3f}" in text and entry.checkpoint in text and entry.data[:12] in text
    assert "<b>near</b> has the highest AP, " in " ".join(text.split())


def test_nothing_is_fetched_from_anywhere(compared: Pages) -> None:
    reader = Reader(compared[1])
    sources = reader.values("img", "src") + reader.values("source", "srcset")
    assert len(sources) > 4 and all(source.startswith("data:image/") for source in sources)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    assert not reader.values("script", "src") and not reader.values("a", "href")
    assert not re.search(r"https?://|@import|url\(", compared[1])


def test_every_run_shows_the_same_images(compared: Pages) -> None:
    entries, content = compared
    alts = Reader(content).values("img", "alt")
    seen = {e.name: re.findall(rf"Poses of {re.escape(e.name)} in image (\d+)", "\n".join(alts)) for e in entries}
    annotated = re.findall(r"Annotated people of image (\d+)", "\n".join(alts))
    assert len(annotated) >= 4 and all(ids == annotated for ids in seen.values())


def test_differences_have_the_ranges_of_the_bootstrap(compared: Pages) -> None:
    (far, near, _), content = compared
    assert near.evaluation.matches and far.evaluation.matches
    found = difference(near.evaluation.matches, far.evaluation.matches)
    assert found.certain
    text = " ".join(Reader(content).text.split())
    for interval in (found, -found):
        value, low, high = (f"{x:+.3f}".replace("-", "\N{MINUS SIGN}") for x in dataclasses.astuple(interval))
        assert f"{value} {low} to {high} more than noise" in text


def test_only_settings_that_differ_are_shown(compared: Pages) -> None:
    entries, content = compared
    assert comparison.differing_settings({e.name: e.experiment for e in entries}) == {
        "optim.lr": {"far & wide": "0.001", "<b>near</b>": "0.002", "middling": "0.001"}
    }
    text = Reader(content).text
    assert "optim.lr" in text and "optim.warmup_steps" not in text


def test_settings_of_one_method_have_no_value_for_the_others(small_run: dict) -> None:
    smpr = build_experiment(small_run)
    pfs = build_experiment({**small_run, "method": "pfs", "run": {"name": "other"}})
    found = comparison.differing_settings({"a": smpr, "b": pfs})
    assert found["method"] == {"a": "smpr", "b": "pfs"} and found["model.filter.enabled"].keys() == {"b"}
    assert not any(name.startswith("run.") for name in found)


def test_one_run_alone_has_no_differences(trained: comparison.Entry) -> None:
    text = Reader(page.render([trained], {})).text
    assert "Scores" in text and "Differences of AP" not in text and "Settings that differ" not in text
    assert "has the highest AP" not in text


def test_runs_on_different_images_are_not_drawn_together(compared: Pages) -> None:
    one, other, _ = compared[0]
    text = Reader(page.render([one, dataclasses.replace(other, data="another")], {})).text
    assert "not scored on the same images" in text and "The same images" not in text


def test_images_with_the_largest_spread_come_first_then_the_same_random_ones() -> None:
    one, other = {i: 0.5 for i in range(1, 9)}, {i: 0.5 for i in range(1, 9)}
    other |= {3: 0.9, 7: 0.25, 8: 0.6}
    chosen = gallery.choose([one, other], differing=2, at_random=3)
    assert list(chosen)[:2] == [3, 7] and chosen[3] == pytest.approx(0.4) and chosen[7] == pytest.approx(0.25)
    assert len(chosen) == 5 and [chosen[i] for i in list(chosen)[2:]] == [None] * 3
    assert chosen == gallery.choose([one, other], differing=2, at_random=3)
    assert gallery.choose([one], differing=2, at_random=99) == dict.fromkeys(range(1, 9))
