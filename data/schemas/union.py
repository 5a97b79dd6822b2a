"""Joins keypoint schemas by name: the schema of a model that learns from several sources, each with its own keypoints.

Two names mean the same keypoint if they differ in spelling only (``LShoulder`` is ``left_shoulder``).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posefleet.data.schemas.names import mirror_pairs, parts_of
from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.schemas.sigmas import DEFAULT_SIGMA, known_sigma

Sources = Mapping[str, KeypointSchema]
"""Name of a source -> its schema, in the order of the sources."""

_REMEDY = "give the whole schema: --schema FILE.yaml, or a shipped name (docs/schemas.md)"


def union_of(sources: Sources) -> KeypointSchema:
    """The union of the schemas of some sources: the keypoints of the first, then what each further one adds.

    Edges, pairs and groups are those of any source. A sigma that a schema gives wins over one that another schema
    inferred from the name or has by default. If the first schema already has everything, it is the union.

    Raises:
        SchemaError: A source shares no keypoint with the others, two sources give different sigmas to a keypoint, or
            pair it with different keypoints; the message names both.
    """
    _check_common(sources)
    first, *_ = sources.values()
    spelled: dict[object, str] = {}
    for schema in sources.values():
        for name in schema.keypoints:
            spelled.setdefault(parts_of(name), name)
    names = tuple(spelled.values())
    edges: dict[frozenset[str], tuple[str, str]] = {}
    groups: dict[str, dict[str, None]] = {}
    for schema in sources.values():
        for a, b in schema.skeleton:
            edge = spelled[parts_of(a)], spelled[parts_of(b)]
            edges.setdefault(frozenset(edge), edge)
        for group, members in schema.groups.items():
            groups.setdefault(group, {}).update((spelled[parts_of(member)], None) for member in members)
    values = [_sigma(name, sources) for name in names]
    origin = f"union of {', '.join(sources)}"
    guessed = [name for name, value in zip(names, values, strict=True) if not value.given]
    union = KeypointSchema(
        name="+".join(dict.fromkeys(schema.name for schema in sources.values())),
        keypoints=names,
        sigmas=tuple(value.sigma for value in values),
        skeleton=tuple(edges.values()),
        flip_pairs=_pairs(names, spelled, sources),
        groups={group: tuple(members) for group, members in groups.items()},
        sources=dict.fromkeys(("names", "skeleton", "flip_pairs", "groups"), origin)
        | {"sigmas": f"{origin}; inferred or default for {', '.join(guessed)}" if guessed else origin},
    )
    same = dataclasses.replace(union, name=first.name, groups=first.groups) == first
    return first if same else union


def check_sources(schema: KeypointSchema, sources: Sources) -> None:
    """Check that a given schema can be learned from some sources.

    Raises:
        SchemaError: A source has none of its keypoints, or no source has one of them.
    """
    known = [places_in(schema, own) for own in sources.values()]
    for (name, own), places in zip(sources.items(), known, strict=True):
        if not any(place is not None for place in places):
            raise SchemaError(
                f"source {name} has none of the keypoints of schema {schema.name}: it has {_listed(own.keypoints)}, "
                f"the schema {_listed(schema.keypoints)}; rename its keypoints (rename: {{OWN: NEW}}) or leave it out"
            )
    columns = zip(schema.keypoints, zip(*known, strict=True), strict=True)
    if missing := [keypoint for keypoint, column in columns if all(place is None for place in column)]:
        raise SchemaError(
            f"no source labels {', '.join(missing)} of schema {schema.name}: the sources are "
            f"{', '.join(f'{name} ({own.name})' for name, own in sources.items())}. Leave them out of the schema, or "
            "add a source that labels them"
        )


def places_in(schema: KeypointSchema, own: KeypointSchema) -> tuple[int | None, ...]:
    """Where the keypoints of ``schema`` are in the schema of a source; None for those that the source does not have."""
    places = {parts_of(name): index for index, name in enumerate(own.keypoints)}
    return tuple(places.get(parts_of(name)) for name in schema.keypoints)


def renamed(schema: KeypointSchema, names: Mapping[str, str], where: str) -> KeypointSchema:
    """A schema with other names for some keypoints.

    Args:
        names: Own name -> new name.
        where: Source of the schema, for messages.

    Raises:
        SchemaError: A name is not a keypoint, or a new name is there already.
    """
    if unknown := sorted(set(names) - set(schema.keypoints)):
        raise SchemaError(
            f"{where}: rename has {', '.join(unknown)}, which schema {schema.name} does not have; it has "
            f"{', '.join(schema.keypoints)}"
        )

    def new(name: str) -> str:
        return names.get(name, name)

    return dataclasses.replace(
        schema,
        keypoints=tuple(map(new, schema.keypoints)),
        skeleton=tuple((new(a), new(b)) for a, b in schema.skeleton),
        flip_pairs=tuple((new(a), new(b)) for a, b in schema.flip_pairs),
        groups={group: tuple(map(new, members)) for group, members in schema.groups.items()},
        sources={**schema.sources, "names": f"{schema.sources.get('names', 'given')}; renamed by the settings"},
    )


def _check_common(sources: Sources) -> None:
    every = {name: {parts_of(keypoint) for keypoint in schema.keypoints} for name, schema in sources.items()}
    for name, own in every.items():
        rest = set().union(*(found for other, found in every.items() if other != name))
        if len(sources) > 1 and not own & rest:
            raise SchemaError(
                f"source {name} shares no keypoint with the others: it has {_listed(sources[name].keypoints)}, the "
                f"others {_listed([k for n, s in sources.items() if n != name for k in s.keypoints])}. Rename those "
                f"that mean the same (rename: {{OWN: NEW}}); if none do, {_REMEDY}"
            )


class _Value(NamedTuple):
    source: str
    sigma: float
    given: bool


def _sigma(name: str, sources: Sources) -> _Value:
    """The sigma of a keypoint of the union; a given one if there is one."""
    values: list[_Value] = []
    for source, schema in sources.items():
        for own, sigma in zip(schema.keypoints, schema.sigmas, strict=True):
            if parts_of(own) == parts_of(name):
                values.append(_Value(source, sigma, not _inferred(schema, own, sigma)))
    first, *rest = [value for value in values if value.given] or values
    for other in rest:
        if not math.isclose(first.sigma, other.sigma, rel_tol=1e-6):
            raise SchemaError(
                f"the sources disagree on the sigma of {name}: {first.source} has {first.sigma:g}, {other.source} has "
                f"{other.sigma:g}; {_REMEDY}, or give one of the two sources a schema of its own with the other sigma"
            )
    return first


def _inferred(schema: KeypointSchema, name: str, sigma: float) -> bool:
    """Whether nobody gave this sigma: it follows from the name, or is the default."""
    source = schema.sources.get("sigmas", "")
    return ("inferred" in source and sigma == known_sigma(name)) or ("default" in source and sigma == DEFAULT_SIGMA)


def _pairs(names: Sequence[str], spelled: Mapping[object, str], sources: Sources) -> tuple[tuple[str, str], ...]:
    """Mirror pairs of any source, and those of the names where no source has both sides."""
    found: dict[str, tuple[tuple[str, str], str]] = {}
    for source, schema in sources.items():
        for left, right in schema.flip_pairs:
            pair = spelled[parts_of(left)], spelled[parts_of(right)]
            for name in pair:
                other, where = found.setdefault(name, (pair, source))
                if set(other) != set(pair):
                    raise SchemaError(
                        f"the sources disagree on the mirror of {name}: {where} pairs {' and '.join(other)}, {source} "
                        f"pairs {' and '.join(pair)}; {_REMEDY}"
                    )
    together = [{spelled[parts_of(name)] for name in schema.keypoints} for schema in sources.values()]
    for pair in mirror_pairs(names):
        if not set(pair) & found.keys() and not any(set(pair) <= own for own in together):
            found |= dict.fromkeys(pair, (pair, ""))
    return tuple(dict.fromkeys(pair for pair, _ in found.values()))


def _listed(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
