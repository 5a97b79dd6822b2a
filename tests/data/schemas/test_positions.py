"""Tests where a schema without an image is drawn."""

import numpy as np
import pytest

from posefleet.data.schemas.positions import place_keypoints
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, load_schema


@pytest.mark.parametrize("name", ["coco17", "hand21", "horse10", "ap10k17"])
def test_joined_keypoints_are_near_and_sides_mirror_each_other(name: str) -> None:
    schema = load_schema(name)
    places = place_keypoints(schema)
    assert places.min() >= 0 and places.max() <= 1
    np.testing.assert_allclose(
        places[schema.flip_index] if schema.flip_pairs else places,
        places * (-1, 1) + (1, 0) if schema.flip_pairs else places,
        atol=1e-9,
    )
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    joined = [distances[a, b] for a, b in schema.edges]
    assert np.median(joined) < np.median(distances[np.triu_indices(len(schema), 1)])
    assert distances[np.triu_indices(len(schema), 1)].min() > 0.005


def test_left_is_at_the_right_of_the_picture() -> None:
    places = dict(zip(COCO17.keypoints, place_keypoints(COCO17).tolist(), strict=True))
    assert all(places[left][0] > places[right][0] for left, right in COCO17.flip_pairs)


@pytest.mark.parametrize("names", [["ball"], ["a", "b"], ["left_eye", "right_eye"]])
def test_few_keypoints_without_a_skeleton_have_places(names: list[str]) -> None:
    places = place_keypoints(KeypointSchema.from_dict({"name": "few", "keypoints": names}))
    assert np.isfinite(places).all() and len(np.unique(places.round(6), axis=0)) == len(names)
