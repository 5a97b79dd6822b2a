"""Draws people, poses and training targets over their images, and arranges images in contact sheets.

Images are (H, W, 3) uint8 RGB, in and out; the input is not changed. Left limbs are orange, right limbs blue; limbs
between the sides, boxes and labels have the colour of the person. Keypoints of a schema without left and right have
colours by their order instead, from red to violet.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People, Poses, TargetPoints
from posefleet.platform.visualization.labels import head_box, place_labels, whole_box

Colour = tuple[int, int, int]

LEFT: Colour = (255, 138, 30)
RIGHT: Colour = (40, 150, 255)
NOBODY: Colour = (170, 170, 170)
OUTLINE: Colour = (20, 20, 20)
DOUBTFUL: Colour = (255, 60, 60)
PAPER: Colour = (28, 30, 34)
INK: Colour = (240, 240, 240)

OPACITY = 0.9
"""Weight of people and poses over the image, in [0, 1]."""

DIMMED = 0.55
"""Brightness factor of an image under training targets."""

SUBPIXEL_BITS = 4
"""OpenCV takes coordinates as integers with this many binary places."""

PEOPLE_COLOURS: tuple[Colour, ...] = (
    (74, 222, 128), (232, 121, 249), (250, 204, 21), (248, 113, 113), (45, 212, 191), (192, 162, 255), (190, 242, 100),
)  # fmt: skip
MARKERS = ("dot", "ring", "cross", "square")


def draw_poses(
    image: np.ndarray,
    poses: Poses,
    schema: KeypointSchema,
    *,
    score_threshold: float = 0.0,
    keypoint_threshold: float = 0.0,
    zoom: float = 1.0,
    tracks: np.ndarray | None = None,
) -> np.ndarray:
    """Draw predicted poses, the best on top, each with its score.

    Args:
        image: (H, W, 3) uint8.
        poses: Poses in pixels of ``image``.
        schema: Their keypoints.
        score_threshold: Poses with a lower score are left out.
        keypoint_threshold: Keypoints with a lower score are left out, with the limbs that end there.
        zoom: Enlarges the image first, so that lines on a small image are fine.
        tracks: (N,) number of each person in a film, which gives the colour and is written before the score; below 0:
            nobody is known.

    Returns:
        (zoom H, zoom W, 3) uint8.
    """
    canvas = _enlarged(image, zoom)
    layer = canvas.copy()
    chosen = poses.scores >= score_threshold
    kept = poses[chosen].to("cpu")
    people = [-1] * len(kept) if tracks is None else tracks[chosen.cpu().numpy()].tolist()
    colours = [_person_colour(person if person >= 0 else index) for index, person in enumerate(people)]
    keypoints = kept.keypoints.double().numpy() * zoom
    shown = (kept.keypoint_scores >= keypoint_threshold).numpy() & np.isfinite(keypoints).all(-1)
    fineness = _fineness(schema, len(kept))
    for index in reversed(range(len(kept))):
        _draw_figure(layer, keypoints[index], shown[index], shown[index], schema, colours[index], fineness)
    numbers = [f"#{person} " if person >= 0 else "" for person in people]
    texts = [f"{number}{score:.2f}" for number, score in zip(numbers, kept.scores.tolist(), strict=True)]
    canvas = _blend(canvas, layer)
    _draw_labels(canvas, keypoints, shown, texts, colours, schema)
    return canvas


def draw_people(image: np.ndarray, people: People, schema: KeypointSchema, *, zoom: float = 1.0) -> np.ndarray:
    """Draw annotated people with their boxes. Hidden keypoints are hollow, unlabelled people and crowds grey boxes.

    Args:
        image: (H, W, 3) uint8.
        people: People in pixels of ``image``.
        schema: Their keypoints.
        zoom: Enlarges the image first.

    Returns:
        (zoom H, zoom W, 3) uint8.
    """
    canvas = _enlarged(image, zoom)
    layer = canvas.copy()
    people = people.to("cpu")
    keypoints, visibility = people.keypoints.double().numpy() * zoom, people.visibility.numpy()
    labelled, boxes = people.labelled.tolist(), people.boxes.double().numpy() * zoom
    for index in range(len(people)):
        colour = _person_colour(index) if labelled[index] else NOBODY
        _rectangle(layer, boxes[index], colour)
        if labelled[index]:
            seen, clear = visibility[index] > 0, visibility[index] > 1
            _draw_figure(layer, keypoints[index], seen, clear, schema, colour, _fineness(schema, sum(labelled)))
    canvas = _blend(canvas, layer)
    for box in boxes[people.crowd.numpy()]:
        _label(canvas, "crowd", (box[0], box[1] - 6 - _label_size(canvas, "crowd")[1]), NOBODY)
    return canvas


def mark_points(image: np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a ring around each of some points (2,) xy, pixels of the (H, W, 3) uint8 image."""
    canvas = image.copy()
    radius = max(8.0, 0.03 * max(image.shape[:2]))
    for point in points:
        _circle(canvas, point, radius, OUTLINE, 5)
        _circle(canvas, point, radius, DOUBTFUL, 2)
    return canvas


def draw_targets(
    image: np.ndarray,
    targets: Sequence[TargetPoints],
    people: People | None = None,
    schema: KeypointSchema | None = None,
    *,
    zoom: float = 1.0,
) -> np.ndarray:
    """Draw training targets over the darkened image: a marker shape per group, a colour per person, size by stride.

    Args:
        image: (H, W, 3) uint8.
        targets: Groups of points in pixels of ``image``; points that belong to nobody are grey.
        people: The people they are for, drawn beneath in thin lines (with ``schema``).
        schema: The keypoints of ``people``.
        zoom: Enlarges the image first.

    Returns:
        (zoom H + legend, zoom W, 3) uint8.
    """
    canvas = (_enlarged(image, zoom) * DIMMED).astype(np.uint8)
    if people is not None and schema is not None:
        _draw_outlines(canvas, people.to("cpu"), schema, zoom)
    for group, target in enumerate(targets):
        columns = (target.points, target.person, target.stride)
        for point, person, stride in zip(*(values.detach().cpu().tolist() for values in columns), strict=True):
            colour = _person_colour(person) if person >= 0 else NOBODY
            radius = float(np.clip(zoom * stride / 6, 2.0, 9.0))
            _marker(canvas, MARKERS[group % len(MARKERS)], np.array(point) * zoom, radius, colour)
    legend = _legend([f"{target.name}: {len(target.points)}" for target in targets], canvas.shape[1])
    return np.vstack([canvas, legend])


def side_by_side(ground_truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Two images in a row, captioned ground truth and prediction."""
    return grid([ground_truth, prediction], columns=2, captions=["ground truth", "prediction"])


def grid(images: Sequence[np.ndarray], columns: int, *, captions: Sequence[str] | None = None) -> np.ndarray:
    """A contact sheet.

    Args:
        images: (H, W, 3) uint8 each, of any size; at least one.
        columns: Images in a row.
        captions: A line of text over each image.

    Returns:
        One (H, W, 3) uint8 image; every row is as high as its highest tile.
    """
    tiles = list(images)
    if captions is not None:
        tiles = [_captioned(tile, text) for tile, text in zip(tiles, captions, strict=True)]
    columns = min(columns, len(tiles))
    width, gap = max(tile.shape[1] for tile in tiles), 6
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    sheet = np.full((sum(heights) + gap * (len(rows) + 1), columns * (width + gap) + gap, 3), PAPER, np.uint8)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = gap + column * (width + gap) + (width - tile.shape[1]) // 2
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += height + gap
    return sheet


# ------------------------------------------------------------------------------------------------------- figures


def _draw_figure(
    layer: np.ndarray,
    keypoints: np.ndarray,
    shown: np.ndarray,
    filled: np.ndarray,
    schema: KeypointSchema,
    colour: Colour,
    fineness: float,
) -> None:
    """Draw one stick figure: the (K, 2) keypoints, pixels, that are ``shown`` (K,); hollow if not ``filled`` (K,)."""
    if not shown.any():
        return
    extent = np.ptp(keypoints[shown], axis=0)
    thickness = float(np.clip(0.017 * fineness * math.hypot(*extent), 1.6 * fineness, 7.0))
    colours = _keypoint_colours(schema)
    limbs = [(a, b) for a, b in schema.edges if shown[a] and shown[b]]
    for width, dark in ((thickness + 1.6 * fineness, True), (thickness, False)):
        for a, b in limbs:
            _line(
                layer,
                keypoints[a],
                keypoints[b],
                OUTLINE if dark else _limb_colour(colours[a], colours[b], colour),
                width,
            )
    radius = 0.85 * thickness + 0.8 * fineness
    for index in np.nonzero(shown)[0]:
        _circle(layer, keypoints[index], radius + 0.9 * fineness, OUTLINE)
        _circle(layer, keypoints[index], radius, colours[index] or colour)
        if not filled[index]:
            _circle(layer, keypoints[index], 0.6 * radius, INK)


def _fineness(schema: KeypointSchema, figures: int) -> float:
    """Factor of the widths of lines: many keypoints, as of a face, or many figures would cover each other."""
    return min(1.0, math.sqrt(17 / len(schema))) * min(1.0, math.sqrt(6 / max(figures, 1)))


def _draw_outlines(canvas: np.ndarray, people: People, schema: KeypointSchema, zoom: float) -> None:
    keypoints, shown = people.keypoints.double().numpy() * zoom, (people.visibility > 0).numpy()
    for index, box in enumerate(people.boxes.double().numpy() * zoom):
        _rectangle(canvas, box, _person_colour(index) if people.labelled[index] else NOBODY)
        for a, b in schema.edges:
            if shown[index, a] and shown[index, b]:
                _line(canvas, keypoints[index, a], keypoints[index, b], _person_colour(index), 1.0)


def _limb_colour(a: Colour | None, b: Colour | None, middle: Colour) -> Colour:
    """The colour of a limb by those of its ends: a side's if both are on it, or one is and the other is in the middle
    of the body; the second one's where colours go by order."""
    if a is None or b is None or a == b:
        return a or b or middle
    return middle if {a, b} == {LEFT, RIGHT} else b


@lru_cache(maxsize=16)
def _keypoint_colours(schema: KeypointSchema) -> tuple[Colour | None, ...]:
    """The colour of each keypoint: that of its side, or without any pair that of its place; None: the person's."""
    if schema.flip_pairs or len(schema) == 1:
        by_side = {"left": LEFT, "right": RIGHT}
        return tuple(by_side.get(side) for side in schema.sides)
    hues = np.linspace(0, 0.78, len(schema)).tolist()
    colours = np.array([colorsys.hls_to_rgb(hue, 0.6, 0.9) for hue in hues])
    return tuple((r, g, b) for r, g, b in (255 * colours).round().astype(int).tolist())


def _person_colour(index: int) -> Colour:
    return PEOPLE_COLOURS[index % len(PEOPLE_COLOURS)]


# --------------------------------------------------------------------------------------------------------- marks


def _fixed(point: np.ndarray) -> tuple[int, int]:
    # OpenCV's integer coordinates are pixel centres, ours are i + 0.5.
    x, y = np.clip((np.asarray(point, np.float64) - 0.5) * (1 << SUBPIXEL_BITS), -(2**20), 2**20).round()
    return int(x), int(y)


def _line(layer: np.ndarray, a: np.ndarray, b: np.ndarray, colour: Colour, width: float) -> None:
    cv2.line(layer, _fixed(a), _fixed(b), colour, max(1, round(width)), cv2.LINE_AA, SUBPIXEL_BITS)


def _circle(layer: np.ndarray, centre: np.ndarray, radius: float, colour: Colour, thickness: int = cv2.FILLED) -> None:
    cv2.circle(
        layer, _fixed(centre), round(radius * (1 << SUBPIXEL_BITS)), colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS
    )


def _rectangle(layer: np.ndarray, box: np.ndarray, colour: Colour) -> None:
    cv2.rectangle(layer, _fixed(box[:2]), _fixed(box[2:]), colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)


def _marker(canvas: np.ndarray, shape: str, centre: np.ndarray, radius: float, colour: Colour) -> None:
    if shape == "dot":
        _circle(canvas, centre, radius, colour)
    elif shape == "ring":
        _circle(canvas, centre, radius + 2, colour, 1)
    elif shape == "cross":
        for arm in (np.array([radius, radius]), np.array([radius, -radius])):
            _line(canvas, centre - arm, centre + arm, colour, 1.0)
    else:
        _rectangle(canvas, np.concatenate([centre - radius, centre + radius]), colour)


def _draw_labels(
    canvas: np.ndarray,
    keypoints: np.ndarray,
    shown: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[Colour],
    schema: KeypointSchema,
) -> None:
    """Label N poses with (N, K, 2) keypoints, pixels, of which those ``shown`` (N, K) are drawn, the first on top."""
    labelled = [index for index in range(len(keypoints)) if shown[index].any()]
    heads = [head_box(keypoints[index], shown[index], schema) for index in labelled]
    boxes = [whole_box(keypoints[index, shown[index]], head) for index, head in zip(labelled, heads, strict=True)]
    sizes = [_label_size(canvas, texts[index]) for index in labelled]
    known = [head for head in heads if head is not None]
    corners = place_labels(boxes, sizes, known, (canvas.shape[1], canvas.shape[0]))
    for index, corner in reversed(list(zip(labelled, corners, strict=True))):
        _label(canvas, texts[index], corner, colours[index])


def _label_size(canvas: np.ndarray, text: str) -> tuple[int, int]:
    """Width and height of a label on ``canvas``, pixels."""
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _label_scale(canvas), 1)
    return width + 6, height + base + 1


def _label_scale(canvas: np.ndarray) -> float:
    return float(np.clip(min(canvas.shape[:2]) / 1100, 0.34, 0.6))


def _label(canvas: np.ndarray, text: str, corner: tuple[float, float], colour: Colour) -> None:
    """Draw small text on a dark background, its upper left at ``corner`` (x, y), moved to lie inside ``canvas``."""
    (width, height), scale = _label_size(canvas, text), _label_scale(canvas)
    x = int(np.clip(corner[0], 0, max(canvas.shape[1] - width, 0)))
    y = int(np.clip(corner[1], 0, max(canvas.shape[0] - height, 0)))
    ground = canvas[y : y + height, x : x + width]
    ground[:] = (ground * 0.25).astype(np.uint8)
    base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[1]
    cv2.putText(canvas, text, (x + 3, y + height - base + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _legend(entries: Sequence[str], width: int) -> np.ndarray:
    """A strip of ``width`` pixels with a marker and a text for each group, in as many rows as they need."""
    row_height, scale = 22, 0.42
    places, x, row = [], 10, 0
    for text in entries:
        needed = 24 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] + 18
        if x > 10 and x + needed > width:
            x, row = 10, row + 1
        places.append((x, row))
        x += needed
    strip = np.full(((row + 1) * row_height + 4, width, 3), PAPER, np.uint8)
    for group, (text, (left, line)) in enumerate(zip(entries, places, strict=True)):
        middle = line * row_height + row_height / 2 + 2
        _marker(strip, MARKERS[group % len(MARKERS)], np.array([left + 7.0, middle]), 4.0, INK)
        cv2.putText(strip, text, (left + 20, int(middle) + 5), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    return strip


# -------------------------------------------------------------------------------------------------------- layout


def _enlarged(image: np.ndarray, zoom: float) -> np.ndarray:
    if zoom == 1:
        return np.array(image, order="C")
    return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def _blend(canvas: np.ndarray, layer: np.ndarray) -> np.ndarray:
    return cv2.addWeighted(layer, OPACITY, canvas, 1 - OPACITY, 0)


def _captioned(tile: np.ndarray, text: str) -> np.ndarray:
    strip = np.full((24, tile.shape[1], 3), PAPER, np.uint8)
    cv2.putText(strip, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return np.vstack([strip, tile])
