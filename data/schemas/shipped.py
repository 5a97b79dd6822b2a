"""The keypoint schemas that come with posefleet, one YAML file each in ``files/``; and those of other YAML files."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.plain_yaml import parse_yaml

FOLDER = Path(__file__).with_name("files")


AUTO = "auto"
"""Stands for the schema that the data set itself describes."""


def choose_schema(
    given: str | Mapping[str, Any], automatic: Callable[[], KeypointSchema] | None = None
) -> KeypointSchema:
    """The keypoint schema that a setting means.

    Args:
        given: ``auto``, the name of a shipped schema, the path of a YAML file, or a schema as plain values.
        automatic: Returns the schema of the data set, for ``auto``. None: there is no data set.

    Raises:
        SchemaError: There is no such schema, or it cannot be used.
    """
    if isinstance(given, Mapping):
        return KeypointSchema.from_dict(given, where="the setting schema")
    if given == AUTO and automatic:
        return automatic()
    return read_schema(given) if is_file(given) else load_schema(given)


def is_file(given: str) -> bool:
    """Whether a setting is the path of a YAML file and not the name of a schema."""
    return "/" in given or given.endswith((".yaml", ".yml"))


def compact(schema: KeypointSchema) -> str | dict[str, Any]:
    """The shortest setting that means ``schema``: its name if it is shipped just so, else its plain values."""
    return schema.name if schema.name in shipped_names() and load_schema(schema.name) == schema else schema.as_dict()


def recognise(names: Sequence[str]) -> KeypointSchema | None:
    """The shipped schema with these names in this order; the first by alphabet where two have them."""
    return _by_names().get(tuple(names))


@cache
def _by_names() -> dict[tuple[str, ...], KeypointSchema]:
    return {schema.keypoints: schema for schema in map(load_schema, reversed(shipped_names()))}


def shipped_names() -> list[str]:
    """Names of all shipped schemas."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_schema(name: str) -> KeypointSchema:
    """The shipped keypoint schema with the name ``name``.

    Raises:
        SchemaError: There is no such schema.
    """
    if name not in shipped_names():
        known = ", ".join(shipped_names())
        raise SchemaError(f"unknown keypoint schema {name!r}; known: {known}; or give a YAML file, or {AUTO}")
    return read_schema(str(FOLDER / f"{name}.yaml"))


def read_schema(path: str) -> KeypointSchema:
    """The keypoint schema in a YAML file, see :mod:`posefleet.data.schemas.schema`.

    Args:
        path: Any fsspec path.

    Raises:
        SchemaError: The file is missing, is not YAML, or holds no usable schema.
    """
    try:
        with fsspec.open(path, "rb") as file:
            values = parse_yaml(file.read(), path)
    except FileNotFoundError:
        raise SchemaError(f"{path}: no such file") from None
    except OSError as error:
        raise SchemaError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise SchemaError(str(error)) from None
    return KeypointSchema.from_dict(values, where=path.rpartition("/")[2])


COCO17, CROWDPOSE14 = load_schema("coco17"), load_schema("crowdpose14")
