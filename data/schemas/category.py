"""Makes the keypoint schema of a data set from the categories of its annotation file.

COCO's category lists ``keypoints`` (names) and ``skeleton`` (pairs of numbers from 1 on). ``sigmas``, ``flip_pairs``
and ``groups`` are read too, where a file has them in the form of :mod:`posefleet.data.schemas.schema`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.schemas.shipped import recognise, shipped_names

Category = Mapping[str, Any]

NOT_PEOPLE = {
    "animalpose20": "animal", "ap10k17": "animal", "apt36k17": "animal", "horse10": "horse", "face68": "face",
    "hand21": "hand",
}  # fmt: skip
"""What has the keypoints of a shipped schema, where it is no person."""


def category_name(schema: KeypointSchema) -> str:
    """What has the keypoints of a schema, as its data set calls it: person, dog; empty if nobody said.

    It is the only category that the schema was read from, else what the shipped schema is for, else the schema's name,
    which :func:`schema_of_categories` and authors of YAML files take from what they describe.
    """
    told = re.search(r"category '(.{1,60}?)'( \(and \d+ more\))? of ", schema.sources.get("names", ""))
    if told and not told[2]:
        return told[1]
    if schema.name in shipped_names():
        return NOT_PEOPLE.get(schema.name, "person")
    name = re.sub(r"_\d+$", "", schema.name).replace("_", " ")
    return name if re.fullmatch(r"[^\W\d]+( [^\W\d]+)*", name) and name != "keypoints" else ""


def schema_of_categories(categories: Sequence[Category], where: str) -> KeypointSchema:
    """The schema that categories describe; a shipped one if it has the same names in the same order.

    What the categories leave out is inferred from the names; ``sources`` of the schema says what.

    Args:
        categories: The json objects of the categories whose annotations are used.
        where: Name of the file, for messages and ``sources``.

    Raises:
        SchemaError: No category names keypoints, they name different ones, or the names cannot be used.
    """
    names = names_of_categories(categories, where)
    if not names:
        raise SchemaError(
            f"{where}: its categories list no names of keypoints, so schema auto has nothing to read; name the schema: "
            f"a YAML file, or one of {', '.join(shipped_names())}"
        )
    named = [category for category in categories if category.get("keypoints")]
    first, which = named[0], _describe(named, where)
    more = {key: first[key] for key in ("sigmas", "flip_pairs", "groups") if first.get(key)}
    known = recognise(names)
    if known and not more:
        found = f"recognised: {which} has the names and the order of the shipped schema {known.name}"
        return dataclasses.replace(known, sources={**known.sources, "names": found})
    skeleton, fault = _skeleton(first.get("skeleton"), names)
    name = _name(named, len(names))
    schema = KeypointSchema.from_dict({"name": name, "keypoints": names, "skeleton": skeleton, **more}, where=which)
    return dataclasses.replace(schema, sources={**schema.sources, **({"skeleton": fault} if fault else {})})


def names_of_categories(categories: Sequence[Category], where: str) -> list[str]:
    """The keypoint names that categories list; empty if none of them lists any.

    Raises:
        SchemaError: They list different names, or something else than names.
    """
    found: list[str] = []
    for category in categories:
        names = category.get("keypoints") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            what = f"{where}: category {category.get('name')!r} lists {str(names)[:60]} as keypoints, expected names"
            raise SchemaError(f"{what}; correct the file")
        names = [name.strip() for name in names]
        if names and found and names != found:
            differs = difference(found, names, f"{where}: categories", f"category {category.get('name')!r}")
            raise SchemaError(
                (differs and f"{differs}\n  Read one of them, or those with the same keypoints: --category NAME")
                or f"{where}: category {category.get('name')!r} spells the keypoints {names}, another one {found}"
            )
        found = found or names
    return found


def check_categories(categories: Sequence[Category], schema: KeypointSchema, where: str) -> str:
    """How the names of categories differ from a schema; empty if they do not, or if there are no names.

    Raises:
        SchemaError: As :func:`names_of_categories`.
    """
    names = names_of_categories(categories, where)
    return difference(schema.keypoints, names, f"schema {schema.name}", where) if names else ""


def _describe(categories: Sequence[Category], where: str) -> str:
    first, *others = [str(category.get("name")) for category in categories]
    return f"category {first!r}{f' (and {len(others)} more)' if others else ''} of {where}"


def _name(categories: Sequence[Category], count: int) -> str:
    for key in ("name", "supercategory"):
        found = {category.get(key) for category in categories}
        name = found.pop() if len(found) == 1 else None
        if isinstance(name, str) and name.strip() and name.strip().isprintable():
            name = name.strip()
            return f"{name}_{count}" if name in (*shipped_names(), "auto") else name
    return f"keypoints_{count}"


def _skeleton(edges: Any, names: Sequence[str]) -> tuple[list[list[str]] | None, str]:
    """The edges as names, and why there are none or how they were read where that needs words.

    COCO counts from 1. A file with an edge to 0 counts from 0.
    """
    if not edges:
        return None, ""
    ends = [end for edge in edges for end in edge] if _are_pairs(edges) else None
    if ends is not None and all(isinstance(end, str) for end in ends):
        unknown = sorted({end.strip() for end in ends} - set(names))
        if unknown:
            return None, f"none: the skeleton of the category names {', '.join(unknown[:3])}, which are not keypoints"
        return _unique([[a.strip(), b.strip()] for a, b in edges]), ""
    if ends is None or not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        return None, f"none: the skeleton of the category is {str(edges)[:60]}, expected pairs of numbers"
    start = 0 if 0 in ends else 1
    if wrong := [end for end in ends if not 0 <= end - start < len(names)]:
        return None, f"none: the skeleton of the category names keypoint {wrong[0]} of {len(names)}"
    found = _unique([[names[a - start], names[b - start]] for a, b in edges])
    return found, "" if start else "given by the category, which counts from 0 here, not from 1 as COCO does"


def _are_pairs(edges: Any) -> bool:
    return isinstance(edges, list) and all(isinstance(edge, list) and len(edge) == 2 for edge in edges)


def _unique(edges: Sequence[list[str]]) -> list[list[str]]:
    """The edges without repetitions and loops."""
    return list({frozenset(edge): edge for edge in reversed(edges) if edge[0] != edge[1]}.values())[::-1]
