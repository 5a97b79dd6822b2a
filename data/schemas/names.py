"""Reads keypoint names: which side of the body a name means, which names mirror each other, and where lists differ.

All usual spellings of a side are read: ``left_eye``, ``eye_left``, ``l_eye``, ``L_Eye``, ``eye.R``, ``lefteye``,
``LShoulder``, ``r-knee``, ``"Left Eye"``, ``lknee``, ``FL_paw`` (front left), and the words of some other languages.
"""

import re
from collections.abc import Iterable, Sequence

PARTS = frozenset({
    "eye", "ear", "eyebrow", "brow", "cheek", "jaw", "shoulder", "collar", "clavicle", "arm", "forearm", "elbow",
    "wrist", "hand", "palm", "thumb", "finger", "hip", "thigh", "leg", "knee", "shin", "ankle", "foot", "heel", "toe",
    "bigtoe", "smalltoe", "paw", "hoof", "wing", "breast",
})  # fmt: skip
"""Parts of a body that a side may precede as one letter without a separator, as in ``lknee``. Any other word that
begins with l or r is no side: ``lip``, ``rip``."""

MOST_ROWS = 40
"""Rows of two lists of names that an error shows; beyond that only rows that differ."""

_SPLIT = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W_A-Za-z0-9]+")
_WORD = re.compile(r"(left|right)(.*)|(.+)(left|right)")
_CORNER = re.compile(r"([lr])([fhb])|([fhbr])([lr])")
_SHORT = {"l": "left", "r": "right"}
_SIDES = _SHORT | {
    word: side
    for side, words in {
        "left": "lt lft links linke linker linkes gauche izquierda izquierdo izq sinistra sinistro esquerda esquerdo",
        "right": "rt rgt rechts rechte rechter rechtes droite droit derecha derecho der destra destro direita direito",
    }.items()
    for word in words.split()
}
"""Whole words that mean a side."""
_OTHER = {"left": "right", "right": "left"}

Parts = tuple[tuple[str, ...], tuple[str, ...]]
"""The sides in a name ("left" or "right", in their order), and its other words."""


def parts_of(name: str) -> Parts:
    """The sides and the other words of a name, both in lower case: ``LShoulder`` -> (("left",), ("shoulder",))."""
    sides: list[str] = []
    words: list[str] = []
    for token in tokens(name):
        side, rest = _side_in(token)
        sides += [side] if side else []
        words += [rest] if rest else []
    return tuple(sides), tuple(words)


def tokens(name: str) -> list[str]:
    """The words of a name in lower case, split at separators, digits and changes of case."""
    return [token.lower() for token in _SPLIT.findall(name)]


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The (left, right) names that a horizontal flip swaps, in the order of the left ones.

    A pair needs both sides, and each side once. Letters that number keypoints (a, b, ..., l, ..., r) are no sides.
    """
    numbered = _numbered(names)
    found: dict[Parts, list[str]] = {}
    for name in names:
        if name not in numbered:
            found.setdefault(parts_of(name), []).append(name)
    pairs: list[tuple[str, str]] = []
    for (sides, words), spelled in found.items():
        partners = found.get((tuple(_OTHER[side] for side in sides), words), [])
        if sides[:1] == ("left",) and len(spelled) == len(partners) == 1:
            pairs.append((spelled[0], partners[0]))
    return tuple(pairs)


def without_partner(names: Sequence[str]) -> list[str]:
    """The names with left or right that :func:`mirror_pairs` leaves alone."""
    paired = {name for pair in mirror_pairs(names) for name in pair}
    alone = set(names) - paired - _numbered(names)
    return [name for name in names if name in alone and parts_of(name)[0]]


def same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists name the same keypoints in the same order; spelling of words and sides may differ."""
    return len(first) == len(second) and all(
        a == b or parts_of(a) == parts_of(b) for a, b in zip(first, second, strict=True)
    )


def permutation(first: Sequence[str], second: Sequence[str]) -> list[int] | None:
    """``p`` with ``first[i]`` equal to ``second[p[i]]``, where only the order differs; else None."""
    places = {parts_of(name): index for index, name in enumerate(second)}
    found = [places.get(parts_of(name), -1) for name in first]
    return found if len(first) == len(second) and sorted(found) == list(range(len(second))) else None


def difference(first: Sequence[str], second: Sequence[str], first_title: str, second_title: str) -> str:
    """What differs between two lists of keypoint names; empty if they name the same keypoints in the same order.

    Args:
        first: Names of one side.
        second: Names of the other.
        first_title: What ``first`` is, such as ``schema coco17``.
        second_title: What ``second`` is, such as the name of a file.

    Returns:
        A text of several lines: both lists side by side, and the permutation if only the order differs.
    """
    if same_names(first, second):
        return ""
    order = permutation(first, second)
    size = f"{len(first)} keypoints" if len(first) == len(second) else f"{len(first)} against {len(second)} keypoints"
    lines = [f"{first_title} and {second_title} differ ({size}):", *_side_by_side(first, second)]
    if order is not None:
        lines.append(
            f"  Only the order differs: keypoint i of the left list is keypoint p[i] of the right, p = {order}"
        )
    return "\n".join(lines)


def _side_by_side(first: Sequence[str], second: Sequence[str]) -> Iterable[str]:
    width = max(map(len, first), default=1)
    rows = []
    for index in range(max(len(first), len(second))):
        a = first[index] if index < len(first) else "-"
        b = second[index] if index < len(second) else "-"
        rows.append((a == b or same_names([a], [b]), f"{index:5d}  {a:<{width}}  {{}}  {b}"))
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if not row[0]]
    yield from (text.format("  " if same else "!=") for same, text in rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        yield f"       and {len(rows) - MOST_ROWS} more"


def _side_in(token: str) -> tuple[str, str]:
    """The side in one word ("" if none), and what is left of the word."""
    if token in _SIDES:
        return _SIDES[token], ""
    if match := _WORD.fullmatch(token):
        return match[1] or match[4], match[2] or match[3] or ""
    if match := _CORNER.fullmatch(token):
        return _SHORT[match[1] or match[4]], match[2] or match[3]
    if token[0] in "lr" and token[1:] in PARTS:
        return _SHORT[token[0]], token[1:]
    return "", token


def _numbered(names: Iterable[str]) -> set[str]:
    """Names in which a single letter numbers keypoints: another letter than l, r, m, c stands there in another name."""
    letters: dict[tuple[str, ...], set[str]] = {}
    places: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        words = tokens(name)
        for index, word in enumerate(words):
            if len(word) == 1 and word.isalpha():
                place = (*words[:index], "", *words[index + 1 :])
                letters.setdefault(place, set()).add(word)
                places.setdefault(place, set()).add(name)
    numbering = [place for place, found in letters.items() if found & set("lr") and found - set("lrmc")]
    return {name for place in numbering for name in places[place]}
