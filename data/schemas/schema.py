"""Defines the keypoint schema: what the K keypoints of a data set or model are. As plain values, such as YAML, it is

    name: dog
    keypoints: [nose, left_eye, right_eye, tail]
    skeleton: [[nose, left_eye], [nose, right_eye]]
    flip_pairs: [[left_eye, right_eye]]
    sigmas: [0.026, 0.025, 0.025, 0.067]
    groups: {face: [nose, left_eye, right_eye]}
    sources: {names: where the names come from}

Only ``name`` and ``keypoints`` are required. Without ``flip_pairs`` the pairs follow from left and right in the names,
without ``sigmas`` they come from a table of known names, and without ``skeleton`` and ``groups`` there are none.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from posefleet.data.schemas.names import mirror_pairs, without_partner
from posefleet.data.schemas.sigmas import infer_sigmas
from posefleet.option_names import nearest

LONGEST_NAME = 100
PARTS = ("names", "skeleton", "flip_pairs", "sigmas", "groups")
"""What ``KeypointSchema.sources`` describes."""
MOST_NAMED = 6
"""Keypoints that a message names."""
_KEYS = ("name", "keypoints", "skeleton", "flip_pairs", "sigmas", "groups", "sources")


class SchemaError(ValueError):
    """A keypoint schema cannot be used; the message names the schema, the value, and what was expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointSchema:
    """One set of K keypoints. Schemas are equal if everything but ``sources`` is equal.

    Raises:
        SchemaError: A name is empty, too long or there twice; a list has another length; a sigma is not above 0; a
            pair, edge or group names an unknown keypoint; a keypoint is in two pairs; an edge is there twice.
    """

    name: str
    """Name that shows which schema it is; shipped ones are chosen by it."""
    keypoints: tuple[str, ...]
    """(K,) names, in the order of annotations and predictions."""
    sigmas: tuple[float, ...]
    """(K,) standard deviation of annotators for each keypoint, in units of sqrt(person area). OKS uses k = 2 sigma."""
    skeleton: tuple[tuple[str, str], ...] = ()
    """Edges between keypoints, for drawing; may be empty."""
    flip_pairs: tuple[tuple[str, str], ...] = ()
    """(left, right) names of the keypoints that a horizontal flip swaps; may be empty."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Named parts of the body, such as head, face, body, foot and hands, each with its keypoints; may be empty."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each of ``PARTS`` comes from: given (by what), inferred (from what), or default."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise SchemaError(f"a keypoint schema has the name {self.name!r}, expected a text")
        if not self.keypoints:
            raise SchemaError(f"schema {self.name}: no keypoints; give at least one name")
        for name in self.keypoints:
            if not isinstance(name, str) or name != name.strip() or not name.isprintable() or not name:
                raise SchemaError(f"schema {self.name}: keypoint {name!r} is not a name of printable characters")
            if len(name) > LONGEST_NAME:
                raise SchemaError(f"schema {self.name}: keypoint {name[:20]!r}... has more than {LONGEST_NAME} letters")
        if twice := _repeated(self.keypoints):
            raise SchemaError(f"schema {self.name}: keypoints {', '.join(twice)} come twice; each name must differ")
        if len(self.sigmas) != len(self.keypoints):
            raise SchemaError(f"schema {self.name}: {len(self.sigmas)} sigmas for {len(self.keypoints)} keypoints")
        for name, sigma in zip(self.keypoints, self.sigmas, strict=True):
            if not (math.isfinite(sigma) and sigma > 0):
                raise SchemaError(f"schema {self.name}: sigma {sigma} of {name} must be a number above 0")
        self._check_known("skeleton", (end for edge in self.skeleton for end in edge))
        self._check_known("flip_pairs", (name for pair in self.flip_pairs for name in pair))
        for group, names in self.groups.items():
            self._check_known(f"groups.{group}", names)
        for what, pairs in (("skeleton", self.skeleton), ("flip_pairs", self.flip_pairs)):
            for a, b in pairs:
                if a == b:
                    raise SchemaError(f"schema {self.name}: {what} joins {a} with itself")
        if twice := _repeated(" - ".join(sorted(edge)) for edge in self.skeleton):
            raise SchemaError(f"schema {self.name}: the skeleton has {', '.join(twice)} twice")
        if twice := _repeated(name for pair in self.flip_pairs for name in pair):
            raise SchemaError(
                f"schema {self.name}: {', '.join(twice)} are in two flip_pairs; a keypoint has one mirror"
            )

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def flip_index(self) -> list[int]:
        """(K,) permutation that swaps left and right: ``flipped = keypoints[:, schema.flip_index]``."""
        swap = {a: b for left, right in self.flip_pairs for a, b in ((left, right), (right, left))}
        places = {name: index for index, name in enumerate(self.keypoints)}
        return [places[swap.get(name, name)] for name in self.keypoints]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The skeleton as pairs of keypoint indices."""
        places = {name: index for index, name in enumerate(self.keypoints)}
        return [(places[a], places[b]) for a, b in self.skeleton]

    @property
    def sides(self) -> list[str]:
        """(K,) ``left``, ``right``, or empty for a keypoint that is in no pair."""
        side = {name: side for pair in self.flip_pairs for name, side in zip(pair, ("left", "right"), strict=True)}
        return [side.get(name, "") for name in self.keypoints]

    def group(self, name: str) -> list[int]:
        """Indices of the keypoints of a group, ascending; empty if the schema has no such group."""
        names = set(self.groups.get(name, ()))
        return [index for index, keypoint in enumerate(self.keypoints) if keypoint in names]

    def subset(self, rows: Sequence[int]) -> Self:
        """The schema of some of its keypoints, given by ascending indices, under the same name."""
        kept = {self.keypoints[row] for row in rows}
        groups = {group: tuple(n for n in names if n in kept) for group, names in self.groups.items()}
        return replace(
            self,
            keypoints=tuple(self.keypoints[row] for row in rows),
            sigmas=tuple(self.sigmas[row] for row in rows),
            skeleton=tuple(edge for edge in self.skeleton if kept.issuperset(edge)),
            flip_pairs=tuple(pair for pair in self.flip_pairs if kept.issuperset(pair)),
            groups={group: names for group, names in groups.items() if names},
        )

    def as_dict(self) -> dict[str, Any]:
        """The whole schema as plain values, which :meth:`from_dict` reads."""
        return {
            "name": self.name,
            "keypoints": list(self.keypoints),
            "skeleton": [list(edge) for edge in self.skeleton],
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
            "groups": {group: list(names) for group, names in self.groups.items()},
            "sources": dict(self.sources),
        }

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "") -> Self:
        """The schema that a dictionary describes; what it leaves out is inferred from the names, see this module.

        Args:
            values: As :meth:`as_dict` returns them. ``name`` and ``keypoints`` are required. ``sigmas`` may be a list,
                one number for all, or a number for each of some names (the rest are inferred).
            where: Source of the values, for messages and ``sources``.

        Raises:
            SchemaError: A key is missing, unknown or has a value of the wrong type, or the schema is impossible.
        """
        start = f"{where}: " if where else ""
        if not isinstance(values, Mapping):
            raise SchemaError(f"{start}a keypoint schema is {type(values).__name__}, expected {', '.join(_KEYS)}")
        for key in values:
            if key not in _KEYS:
                near = nearest(str(key), _KEYS)
                guess = f"; did you mean {near!r}?" if near else "."
                raise SchemaError(f"{start}unknown key {key!r} of a keypoint schema{guess} It has: {', '.join(_KEYS)}")
        for key in ("name", "keypoints"):
            if key not in values:
                raise SchemaError(f"{start}a keypoint schema needs {key!r}; it has {', '.join(map(str, values))}")
        given = f"given by {where}" if where else "given"
        names = tuple(_texts(values["keypoints"], f"{start}keypoints"))
        sources = {"names": given}
        skeleton, pairs = (_pairs(values.get(key), f"{start}{key}") for key in ("skeleton", "flip_pairs"))
        sources["skeleton"] = "none" if skeleton is None else given
        sources["flip_pairs"] = _source_of_pairs(names) if pairs is None else given
        sigmas, sources["sigmas"] = _sigmas(values.get("sigmas"), names, f"{start}sigmas", given)
        groups = _mapping(values.get("groups"), f"{start}groups")
        sources["groups"] = given if groups else "none"
        told = _mapping(values.get("sources"), f"{start}sources")
        try:
            return cls(
                name=values["name"],
                keypoints=names,
                sigmas=sigmas,
                skeleton=skeleton or (),
                flip_pairs=mirror_pairs(names) if pairs is None else pairs,
                groups={str(key): tuple(_texts(found, f"{start}groups.{key}")) for key, found in groups.items()},
                sources=sources | {str(key): str(text) for key, text in told.items()},
            )
        except SchemaError as error:
            raise SchemaError(f"{start}{error}") from None

    def _check_known(self, what: str, names: Iterable[str]) -> None:
        if unknown := sorted(set(names) - set(self.keypoints)):
            raise SchemaError(f"schema {self.name}: {what} names {', '.join(unknown)}, which are not keypoints")


def _source_of_pairs(names: Sequence[str]) -> str:
    """Where mirror pairs without ``flip_pairs`` come from; names the sides without a partner, which may be mistakes."""
    pairs = "inferred from left and right in the names"
    found = pairs if mirror_pairs(names) else "none: there is no pair of left and right in the names"
    alone = without_partner(names)
    if not alone:
        return found
    more = f" and {len(alone) - MOST_NAMED} more" if len(alone) > MOST_NAMED else ""
    return f"{found}; without a partner, or with several: {', '.join(alone[:MOST_NAMED])}{more}"


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _texts(values: Any, what: str) -> Sequence[str]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise SchemaError(f"{what} is {_short(values)}, expected a list of names")
    return values


def _pairs(values: Any, what: str) -> tuple[tuple[str, str], ...] | None:
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not all(map(_is_pair, values)):
        raise SchemaError(f"{what} is {_short(values)}, expected a list of pairs of names, such as [[nose, neck]]")
    return tuple((a, b) for a, b in values)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(name, str) for name in value)


def _mapping(values: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(values, Mapping | None):
        raise SchemaError(f"{what} is {_short(values)}, expected names with values")
    return values or {}


def _sigmas(values: Any, names: Sequence[str], what: str, given: str) -> tuple[tuple[float, ...], str]:
    """The sigmas, and where they come from."""
    if values is None:
        return infer_sigmas(names)
    if _is_number(values):
        return (float(values),) * len(names), given
    if isinstance(values, (list, tuple)) and all(map(_is_number, values)):
        return tuple(map(float, values)), given
    if isinstance(values, Mapping) and all(map(_is_number, values.values())):
        if unknown := sorted(set(map(str, values)) - set(names)):
            raise SchemaError(f"{what} names {', '.join(unknown)}, which are not keypoints")
        rest = [name for name in names if name not in values]
        inferred, source = infer_sigmas(rest)
        every = {**values, **dict(zip(rest, inferred, strict=True))}
        return tuple(float(every[name]) for name in names), f"{given}; the rest {source}" if rest else given
    raise SchemaError(f"{what} is {_short(values)}, expected a number, a number for each keypoint, or numbers by name")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return reprlib.repr(value)  # bounded, where YAML's aliases make a value huge
