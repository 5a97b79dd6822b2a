"""Chooses the categories whose annotations are read; reads the keypoint schema of an annotation file from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posefleet.data.coco.annotations import BODY, is_integer, is_whole_body_schema
from posefleet.data.errors import NoSchema, UnclearCategory
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.category import check_categories, names_of_categories, schema_of_categories
from posefleet.data.schemas.names import same_names
from posefleet.data.schemas.schema import KeypointSchema, SchemaError

ALL = "all"
"""In place of names: every category that lists keypoints."""
PERSON = "person"
"""COCO's name of people."""
MOST_NAMED = 8
"""Categories that a message names."""


@dataclass(frozen=True, slots=True)
class Categories:
    """The categories of an annotation file, and which of them are read."""

    chosen: tuple[dict[str, Any], ...]
    """Those that are read; empty if the file lists no categories: all its annotations are read then."""
    others: tuple[dict[str, Any], ...]
    """The rest."""
    why: str
    """Which are read, and why these; a phrase."""

    @property
    def ids(self) -> set[int]:
        """Ids of those that are read."""
        return {category["id"] for category in self.chosen}

    @property
    def known(self) -> set[int]:
        """Ids of all categories of the file."""
        return self.ids | {category["id"] for category in self.others}


def choose_categories(categories: Sequence[Any], wanted: Sequence[str], annotation_file: str) -> Categories:
    """Choose the categories that are read: the wanted ones, else the only one that can be meant.

    That is the only one that lists keypoints; if none lists any, the one with the name person; else the only one of
    the file.

    Args:
        categories: The elements of the file's list ``categories``; records that are damaged are left out.
        wanted: Names of categories; ``ALL``: all that list keypoints; empty: choose.
        annotation_file: For messages.

    Raises:
        UnclearCategory: Several can be meant, or there is none of a wanted name.
    """
    known = [category for category in categories if not category_record_fault(category)]
    if not known and not wanted:
        return Categories((), (), "every annotation, because the file lists no categories")
    with_keypoints = [category for category in known if category.get("keypoints")]
    people = [category for category in known if category.get("name") == PERSON]
    candidates = with_keypoints or people or known
    if wanted:
        candidates, why = _wanted(known, with_keypoints, wanted, annotation_file), "named with --category"
    elif len(candidates) > 1:
        what = "list keypoints" if with_keypoints else "have the name person" if people else "could be meant"
        every = f", or all of them with --category {ALL}" if with_keypoints else ""
        raise UnclearCategory(
            f"{annotation_file}: {len(candidates)} categories {what}: {described(candidates)}; name the ones to read "
            f"with --category NAME [NAME ...]{every}"
        )
    elif with_keypoints:
        why = "the only one that lists keypoints"
    else:
        why = "none lists keypoints" if len(known) > 1 else "the only one"
    others = tuple(category for category in known if category not in candidates)
    rest = f"; not read: {described(others)}" if others else ""
    return Categories(tuple(candidates), others, f"{described(candidates)}, {why}{rest}")


def _wanted(
    known: Sequence[dict[str, Any]], with_keypoints: list[dict[str, Any]], wanted: Sequence[str], annotation_file: str
) -> list[dict[str, Any]]:
    names = [category.get("name") for category in known]
    if list(wanted) == [ALL] and ALL not in names:
        if not with_keypoints:
            raise UnclearCategory(f"{annotation_file}: --category {ALL}: no category lists keypoints")
        return with_keypoints
    if missing := [name for name in wanted if name not in names]:
        there = described(known) or "none"
        raise UnclearCategory(f"{annotation_file}: no category {', '.join(map(repr, missing))}; there are: {there}")
    return [category for category in known if category.get("name") in wanted]


def described(categories: Sequence[dict[str, Any]]) -> str:
    """Names and ids of categories for a message: ``person (id 1), ball (id 2)``."""
    shown = [f"{category.get('name', 'without a name')} (id {category['id']})" for category in categories[:MOST_NAMED]]
    more = len(categories) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def category_record_fault(record: Any) -> str:
    """What is wrong with a record of ``categories``; empty if nothing is."""
    if not isinstance(record, dict) or not is_integer(record.get("id")):
        return f"category {str(record)[:80]}: expected an object with an integer id"
    if not isinstance(record.get("name", ""), str):
        return f"category {record['id']}: name {record['name']!r}, expected a text"
    return ""


# ------------------------------------------------------------------------------------------------------- keypoints


def schema_of(categories: Categories, annotation_file: str) -> KeypointSchema:
    """The keypoint schema of an annotation file, for the setting ``auto``.

    Raises:
        NoSchema: Its categories list no usable names of keypoints.
    """
    try:
        return schema_of_categories(categories.chosen, _name(annotation_file))
    except SchemaError as error:
        raise NoSchema(f"{annotation_file}: {error}") from None


def read_file_schema(annotation_file: str, category: Sequence[str] = ()) -> KeypointSchema:
    """The keypoint schema that an annotation file describes.

    Args:
        annotation_file: Any fsspec path.
        category: Names of the categories that are read; empty: see :func:`choose_categories`.

    Raises:
        DataError: The file cannot be read.
        UnclearCategory: Several categories can be meant.
        NoSchema: Its categories list no usable names of keypoints.
    """
    return schema_of(read_categories(annotation_file, category), annotation_file)


def read_keypoint_names(annotation_file: str, category: Sequence[str] = ()) -> tuple[str, ...]:
    """The keypoint names of an annotation file whose people need not be read; empty if it lists none that can be used.

    Args:
        annotation_file: Any fsspec path.
        category: Names of the categories that are meant; empty: all, if they name the same keypoints.

    Raises:
        DataError: The file cannot be read.
        UnclearCategory: Categories name different keypoints.
    """
    found: list[Any] = []
    read_lists(annotation_file, {"categories": found.append})
    try:
        chosen = choose_categories(found, category, annotation_file).chosen
    except UnclearCategory:
        if category or len({tuple(c["keypoints"]) for c in found if _lists_names(c)}) != 1:
            raise
        chosen = tuple(c for c in found if _lists_names(c))
    try:
        return tuple(names_of_categories(chosen, _name(annotation_file)))
    except SchemaError:
        return ()


def _lists_names(category: Any) -> bool:
    names = category.get("keypoints") if isinstance(category, dict) else None
    return bool(names) and isinstance(names, list) and all(isinstance(name, str) for name in names)


def read_categories(annotation_file: str, category: Sequence[str] = ()) -> Categories:
    """The categories of an annotation file, see :func:`choose_categories`.

    Raises:
        DataError: The file cannot be read.
        UnclearCategory: Several categories can be meant.
    """
    found: list[Any] = []
    read_lists(annotation_file, {"categories": found.append})
    return choose_categories(found, category, annotation_file)


def names_differ(annotation_file: str, categories: Categories, schema: KeypointSchema) -> str:
    """How the keypoints that an annotation file names differ from those of ``schema``; empty if they do not.

    A file whose categories list no names cannot be compared. Files of COCO-WholeBody name only the body.
    """
    where = _name(annotation_file)
    try:
        names = names_of_categories(categories.chosen, where)
        if is_whole_body_schema(schema) and same_names(names, schema.keypoints[:BODY]):
            return ""
        return check_categories(categories.chosen, schema, where)
    except SchemaError as error:
        return str(error)


def _name(annotation_file: str) -> str:
    return str(annotation_file).rpartition("/")[2]
