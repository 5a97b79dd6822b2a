"""Data sets in COCO's layout whose annotators labelled other keypoints than those of another data set."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def with_keypoints(
    document: Mapping[str, Any], keypoints: Mapping[str, str] | Sequence[str], images: Collection[int], name: str
) -> dict[str, Any]:
    """The annotations of some images with some keypoints only.

    Args:
        document: COCO's annotations, of one category.
        keypoints: Names of the keypoints, or name in the result -> name in ``document``.
        images: Ids of the images.
        name: Name of the new category.
    """
    (category,) = document["categories"]
    chosen = keypoints if isinstance(keypoints, Mapping) else {each: each for each in keypoints}
    rows = [category["keypoints"].index(own) for own in chosen.values()]
    places = {row + 1: place + 1 for place, row in enumerate(rows)}
    edges = [[places[a], places[b]] for a, b in category["skeleton"] if a in places and b in places]
    people = []
    for person in copy.deepcopy(document["annotations"]):
        if person["image_id"] in images:
            triples = [person["keypoints"][3 * row : 3 * row + 3] for row in rows] if person.get("keypoints") else []
            person["keypoints"] = [value for triple in triples for value in triple]
            person["num_keypoints"] = sum(triple[2] > 0 for triple in triples)
            people.append(person)
    return {
        **document,
        "images": [image for image in document["images"] if image["id"] in images],
        "annotations": people,
        "categories": [{**category, "name": name, "keypoints": list(chosen), "skeleton": edges}],
    }
