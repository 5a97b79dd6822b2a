"""Places the keypoints of a schema in a plane, so that it can be drawn without an annotated image."""

import numpy as np

from posefleet.data.schemas.names import tokens
from posefleet.data.schemas.schema import KeypointSchema

STEPS = 300
SIDE, HEIGHT = 0.35, 0.25
"""Strengths that move left keypoints to the right of the picture and right ones to its left, and heads up and feet
down."""
UP = {"nose", "eye", "ear", "head", "neck", "brow", "forehead", "snout", "top"}
DOWN = {"hip", "knee", "ankle", "foot", "toe", "heel", "paw", "hoof", "tail", "mouth", "chin", "bottom"}


def place_keypoints(schema: KeypointSchema) -> np.ndarray:
    """Positions (K, 2) in 0..1 at which joined keypoints are near each other, and left and right mirror each other.

    The keypoints repel each other and the edges pull them together. The result depends on the schema alone.
    """
    count = len(schema)
    edges = np.array(schema.edges, int).reshape(-1, 2)
    flip = np.array(schema.flip_index)
    side = np.array([{"left": 1.0, "right": -1.0}.get(name, 0.0) for name in schema.sides])
    words = [set(tokens(name)) for name in schema.keypoints]
    height = np.array([float(bool(word & DOWN)) - float(bool(word & UP)) for word in words])
    angle = 2 * np.pi * np.arange(count) / count
    places = np.stack([np.sin(angle) + side, -np.cos(angle) + height], 1)
    for step in range(STEPS if count > 1 else 0):
        offsets = places[:, None] - places[None]
        distance = np.maximum(np.linalg.norm(offsets, axis=-1), 1e-2)
        force = (offsets / distance[..., None] ** 3).sum(1) / count
        if len(edges):
            pull = places[edges[:, 1]] - places[edges[:, 0]]
            np.add.at(force, edges[:, 0], pull)
            np.add.at(force, edges[:, 1], -pull)
        else:
            force -= 0.1 * places
        force[:, 0] += SIDE * side
        force[:, 1] += HEIGHT * height
        force -= 0.05 * places
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        places = places + force / length * np.minimum(length, 0.2 * (1 - step / STEPS))
        if side.any():
            places = (places + places[flip] * (-1, 1)) / 2
    low, high = places.min(0), places.max(0)
    extent = float((high - low).max()) or 1.0
    return np.asarray((places - (low + high) / 2) / extent + 0.5)
