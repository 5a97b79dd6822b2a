"""Reads the keypoint schema of an annotation file from its categories, and compares their names with a schema."""

from collections.abc import Sequence
from typing import Any

from posefleet.data.coco.annotations import is_category, person_category_ids
from posefleet.data.errors import NoSchema
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.category import check_categories, names_of_categories, schema_of_categories
from posefleet.data.schemas.schema import KeypointSchema, SchemaError


def read_file_schema(annotation_file: str) -> KeypointSchema:
    """The keypoint schema of an annotation file, for the setting ``auto``.

    Raises:
        DataError: The file cannot be read.
        NoSchema: Its categories list no usable names of keypoints.
    """
    categories: list[Any] = []
    read_lists(annotation_file, {"categories": categories.append})
    try:
        return schema_of_categories(chosen_categories(categories), _name(annotation_file))
    except SchemaError as error:
        raise NoSchema(f"{annotation_file}: {error}") from None


def read_keypoint_names(annotation_file: str) -> tuple[str, ...]:
    """The keypoint names of an annotation file; empty if it lists none that can be used.

    Raises:
        DataError: The file cannot be read.
    """
    categories: list[Any] = []
    read_lists(annotation_file, {"categories": categories.append})
    try:
        return tuple(names_of_categories(chosen_categories(categories), _name(annotation_file)))
    except SchemaError:
        return ()


def names_differ(annotation_file: str, categories: Sequence[Any], schema: KeypointSchema) -> str:
    """How the keypoints that an annotation file names differ from those of ``schema``; empty if they do not.

    A file whose categories list no names cannot be compared.

    Args:
        annotation_file: Its path, for the message.
        categories: The elements of its list ``categories``.
        schema: The expected keypoints.
    """
    try:
        return check_categories(chosen_categories(categories), schema, _name(annotation_file))
    except SchemaError as error:
        return str(error)


def chosen_categories(categories: Sequence[Any]) -> list[dict[str, Any]]:
    """The categories that are read as people."""
    known = [category for category in categories if is_category(category)]
    ids = person_category_ids(known)
    return [category for category in known if category["id"] in ids]


def _name(annotation_file: str) -> str:
    return str(annotation_file).rpartition("/")[2]
