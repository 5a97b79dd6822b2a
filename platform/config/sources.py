"""The data sources of an experiment, each with its own keypoints, and the keypoints of all of them together."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from posefleet.data.errors import DataError
from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import AUTO, choose_schema
from posefleet.data.schemas.union import check_sources, places_in, renamed, union_of
from posefleet.data.shards.layout import read_manifest

FORM = "PATH, or PATH,weight=3,name=coco"
"""Advice in the error about a malformed source."""

_OPTION = re.compile(r",(weight|name|schema)=([^,]*)$")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """One of several data sets that a run trains on or is evaluated on."""

    path: str
    """Shard folder: a path or URI that every worker can read."""
    weight: float | None = None
    """Share of the training samples that come from this source, relative to the weights of the others. None for all
    sources: as many as they have images, so that every image is seen equally often. Unused in evaluation."""
    name: str = ""
    """Name of the source in metrics and messages. Empty: the last part of its path, or as many parts as tell it from
    the others."""
    schema: str | dict[str, Any] = AUTO
    """Keypoints of the source: a YAML file, a shipped schema, or auto: those in its shards. A given one must have the
    names of the shards, and replaces their sigmas, pairs and skeleton."""
    rename: dict[str, str] = field(default_factory=dict)
    """Own name -> name in the union, of keypoints that are the same as another source's under another name."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"a data source needs a path: {FORM}")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight {self.weight:g} of source {self.path} must be above 0; leave out a source instead"
            )
        if self.name and _NOT_IN_NAMES.search(self.name):
            raise ValueError(f"name {self.name!r} of a data source may have letters, digits, '_', '-' and '.' only")

    @classmethod
    def parse(cls, text: str) -> "DataSource":
        """Read ``PATH`` or ``PATH,weight=3,name=coco,schema=FILE``.

        Raises:
            ValueError: A weight is no number, or an option comes twice.
        """
        path, given = text.strip(), dict[str, Any]()
        while match := _OPTION.search(path):
            key, value = match.groups()
            if key in given:
                raise ValueError(f"data source {text!r}: {key} is given twice; write {FORM}")
            given[key], path = value, path[: match.start()]
        if "weight" in given:
            try:
                given["weight"] = float(given["weight"])
            except ValueError:
                raise ValueError(
                    f"data source {text!r}: weight {given['weight']!r} is no number; write {FORM}"
                ) from None
        return cls(path=path, **given)

    def stored_schema(self) -> KeypointSchema:
        """The keypoints of its shards.

        Raises:
            DataError: There are no shards.
        """
        return read_manifest(self.path).schema

    def own_schema(self) -> KeypointSchema:
        """The keypoints of the source, under the names that they have in the union.

        Raises:
            DataError: There are no shards, or their keypoints have other names than those of ``schema``.
            SchemaError: ``schema`` or ``rename`` cannot be used.
        """
        stored = self.stored_schema()
        schema = choose_schema(self.schema, lambda: stored)
        if text := difference(schema.keypoints, stored.keypoints, f"schema {schema.name}", self.path):
            raise DataError(text)
        return renamed(schema, self.rename, self.path) if self.rename else schema


Sources = tuple[DataSource, ...]


def parsed(given: Any) -> Any:
    """A setting of data as it stands in a file or on a command line, with sources in place of the texts of a list.

    Raises:
        ValueError: A text is malformed.
    """
    if isinstance(given, str):
        return [asdict(DataSource.parse(given))] if _OPTION.search(given) else given
    if isinstance(given, (list, tuple)):
        return [asdict(DataSource.parse(each)) if isinstance(each, str) else each for each in given]
    return given


def settled(given: "str | Sequence[DataSource]", setting: str) -> "str | Sources":
    """One path as text, or several sources with a name each.

    Args:
        given: Value of the setting. A single source without settings of its own is its path.
        setting: Name of the setting, for messages.

    Raises:
        ValueError: There are no sources, two have the same name, or some have a weight and others do not.
    """
    if isinstance(given, str):
        return given
    sources = list(given)
    if not sources:
        raise ValueError(f"{setting} is an empty list; name a shard folder, or leave the setting out")
    if len(sources) == 1 and sources[0] == DataSource(path=sources[0].path):
        return sources[0].path
    names = _names(sources)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{setting}: two sources have the name {twice[0]}; give each its own name")
    if len({source.weight is None for source in sources}) > 1:
        weights = ", ".join(f"{n} {s.weight or 'none'}" for n, s in zip(names, sources, strict=True))
        raise ValueError(f"{setting}: give every source a weight, or none of them ({weights})")
    return tuple(replace(source, name=name) for source, name in zip(sources, names, strict=True))


def named(path: str) -> DataSource:
    """A shard folder as a source, with the name that it gets in a list."""
    return DataSource(path=path, name=_names([DataSource(path=path)])[0])


def _names(sources: Sequence[DataSource]) -> list[str]:
    """The name of each source; without one, the shortest end of its path that no other path has."""
    parts = [[part for part in re.split(r"[/\\]+", source.path) if part not in ("", ".")] for source in sources]

    def end(index: int, length: int) -> str:
        return _NOT_IN_NAMES.sub("-", "-".join(parts[index][-length:])).strip("-") or f"source-{index}"

    names = []
    for index, source in enumerate(sources):
        longest = max(1, len(parts[index]))
        alike = [other for other in range(len(sources)) if other != index and not sources[other].name]
        unique = (n for n in range(1, longest) if all(end(index, n) != end(other, n) for other in alike))
        names.append(source.name or end(index, next(unique, longest)))
    return names


def joined_schema(sources: Sources) -> KeypointSchema:
    """The union of the keypoints of some sources.

    Raises:
        DataError: A source has no shards.
        SchemaError: The schemas cannot be joined.
    """
    return union_of({source.name: source.own_schema() for source in sources})


def check_schema(schema: KeypointSchema, sources: Sources) -> None:
    """Check that a model of ``schema`` can learn from some sources.

    Raises:
        DataError: A source has no shards.
        SchemaError: A source has none of the keypoints, or a keypoint is in no source.
    """
    check_sources(schema, {source.name: source.own_schema() for source in sources})


def left_out(schema: KeypointSchema, own: KeypointSchema) -> list[str]:
    """Keypoints of a source that ``schema`` does not have."""
    kept = set(places_in(schema, own))
    return [name for place, name in enumerate(own.keypoints) if place not in kept]


def fingerprint(data: "str | Sources") -> str:
    """Hash of the content of a shard folder, or of those of several sources.

    Raises:
        DataError: There are no shards.
    """
    if isinstance(data, str):
        return read_manifest(data).fingerprint
    marks = [f"{source.name} {source.weight} {read_manifest(source.path).fingerprint}" for source in data]
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()


def samples(data: "str | Sources", *, labelled_only: bool) -> int:
    """Samples of an epoch.

    Raises:
        DataError: There are no shards.
    """
    manifests = [read_manifest(path) for path in paths(data)]
    return sum(manifest.labelled if labelled_only else manifest.samples for manifest in manifests)


def paths(data: "str | Sources") -> list[str]:
    """The shard folders of a setting; none if it is empty."""
    if isinstance(data, str):
        return [data] if data else []
    return [source.path for source in data]
