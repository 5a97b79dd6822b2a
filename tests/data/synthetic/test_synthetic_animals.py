"""Rendered animals: keypoints of their own, which lie on the animal, and a file that names them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posefleet.data.coco.file_schema import read_file_schema
from posefleet.data.synthetic.__main__ import main
from posefleet.data.synthetic.animals import ANIMAL, AnimalPart, animal_extent, paint_animal, random_animal
from posefleet.data.synthetic.canvas import Canvas
from posefleet.data.synthetic.figures import PARTS_PER_PERSON
from posefleet.data.synthetic.scenes import SceneConfig, annotate_person, render_scene


def painted(seed: int, variety: float = 0.0, size: int = 300) -> tuple[Canvas, dict[str, tuple[float, float, int]]]:
    """An animal alone in an image, and its keypoints x, y, v by name."""
    canvas = Canvas.over(np.zeros((size, size, 3), np.uint8))
    animal = random_animal(np.random.default_rng(seed), 0.4 * size, variety)
    left, top, right, bottom = animal_extent(animal)
    where = paint_animal(
        canvas, replace(animal, origin=((size - left - right) / 2, (size - top - bottom) / 2)), 1, detailed=True
    )
    annotation = annotate_person(canvas.owner, 1, where, labelled=True)
    assert annotation is not None
    rows = np.reshape(annotation["keypoints"], (-1, 3)).tolist()
    return canvas, {name: (x, y, int(v)) for name, (x, y, v) in zip(ANIMAL.keypoints, rows, strict=True)}


def test_an_animal_has_twelve_keypoints_in_four_pairs() -> None:
    assert len(ANIMAL) == 12 and len(ANIMAL.flip_pairs) == 4 and len(ANIMAL.edges) == 11


@pytest.mark.parametrize("variety", [0.0, 1.0])
def test_keypoints_lie_on_the_animal(variety: float) -> None:
    shown = []
    for seed in range(12):
        canvas, points = painted(seed, variety)
        for name, (x, y, visibility) in points.items():
            part = int(canvas.owner[int(y), int(x)]) - PARTS_PER_PERSON
            assert part > 0, (seed, name)  # on the animal, or hidden by another part of it
            leg = name.rpartition("_")[0]
            if visibility == 2 and leg in ("left_front", "right_hind"):
                assert part == AnimalPart[f"{leg}_leg".upper()]
        shown.append(np.mean([visibility == 2 for *_, visibility in points.values()]))
    assert np.mean(shown) > 0.8


def test_an_animal_stands_on_its_paws_below_its_back() -> None:
    for seed in range(8):
        _, points = painted(seed)
        paws, knees = ([points[name][1] for name in points if name.endswith(end)] for end in ("paw", "knee"))
        assert points["withers"][1] < min(knees) and max(knees) < max(paws)
        ahead = np.sign(points["nose"][0] - points["withers"][0])
        assert np.sign(points["withers"][0] - points["tail_base"][0]) == ahead


def test_a_mirrored_animal_swaps_left_and_right() -> None:
    """Of an animal that walks to the left of the image, the left legs are the nearer ones."""
    for seed in range(8):
        canvas, points = painted(seed)
        near = "left" if points["nose"][0] < points["tail_base"][0] else "right"
        counts = {
            side: (canvas.owner == PARTS_PER_PERSON + AnimalPart[f"{side}_hind_leg".upper()]).sum()
            for side in ("LEFT", "RIGHT")
        }
        assert max(counts, key=lambda side: counts[side]) == near.upper()


def test_scenes_of_animals_are_annotated_like_those_of_people(tmp_path: Path) -> None:
    image, annotations = render_scene(SceneConfig(figure="animal", people=(2, 2), crowd_rate=1, unlabelled_rate=0), 3)
    assert image.shape == (256, 256, 3)
    assert {len(annotation["keypoints"]) for annotation in annotations} == {36}
    assert {annotation["iscrowd"] for annotation in annotations} == {0, 1}
    arguments = ["--figure", "animal", "--easy", "--out", str(tmp_path), "--count", "2", "--size", "96"]
    main([*arguments, "--workers", "1"])
    path = tmp_path / "annotations" / "person_keypoints_train2017.json"
    (category,) = json.loads(path.read_text())["categories"]
    assert category["name"] == "animal"
    assert replace(read_file_schema(str(path)), name=ANIMAL.name) == ANIMAL
