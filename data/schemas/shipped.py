"""The keypoint schemas that come with posefleet, one YAML file each in ``files/``, which also names its sources."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from posefleet.data.schemas.schema import KeypointSchema, SchemaError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast one where PyYAML was built with it."""

FOLDER = Path(__file__).with_name("files")


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
        raise SchemaError(f"unknown keypoint schema {name!r}; known: {', '.join(shipped_names())}")
    return read_schema(FOLDER / f"{name}.yaml")


def read_schema(path: str | Path) -> KeypointSchema:
    """The keypoint schema in a YAML file, see :mod:`posefleet.data.schemas.schema`.

    Raises:
        SchemaError: The file is missing, is not YAML, or holds no usable schema.
    """
    return KeypointSchema.from_dict(read_yaml(path), where=str(path))


def read_yaml(path: str | Path) -> Any:
    """The values in a YAML file.

    Raises:
        SchemaError: The file is missing or is not YAML.
    """
    try:
        return yaml.load(Path(path).read_bytes(), _LOADER)
    except FileNotFoundError:
        raise SchemaError(f"{path}: no such file") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise SchemaError(f"{path} is not valid YAML: {error}") from None


COCO17, CROWDPOSE14 = load_schema("coco17"), load_schema("crowdpose14")
