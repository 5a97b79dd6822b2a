"""The file data.yaml of a data set in YOLO's pose format: its splits, classes and keypoints.

    path: /data/dogs                  # root of the paths below; else the folder of the file
    train: images/train               # a folder, a text file that lists images, or a list of these
    val: images/val
    names: {0: dog}                   # or [dog]
    kpt_shape: [24, 3]                # keypoints, and values of each: x y, or x y v
    flip_idx: [0, 2, 1, ...]          # the keypoint that each becomes when the image is mirrored
    kpt_names: {0: [nose, ...]}       # names by class, or one list for all

The label of ``.../images/.../x.jpg`` is ``.../labels/.../x.txt``; without a folder ``images`` it is beside the image.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posefleet.data.errors import DataError
from posefleet.data.images import IMAGE_ENDINGS
from posefleet.data.yolo.labels import LabelFormat
from posefleet.data.yolo.problems import Problems

SPLITS = ("train", "val", "test")
LISTS = ".txt"


@dataclass(frozen=True, slots=True)
class DataFile:
    """What a data.yaml says."""

    path: Path
    root: Path
    """Folder that relative paths start from."""
    splits: dict[str, tuple[Path, ...]]
    """Split -> its folders and list files, all there."""
    classes: tuple[str, ...]
    """Name of each class."""
    form: LabelFormat
    keypoint_names: tuple[tuple[str, ...], ...]
    """Names of the keypoints of each class; ``keypoint_0``, ... if the file has none."""
    flip: tuple[int, ...] | None
    """Keypoint that each becomes when the image is mirrored; None: the file does not say."""


def find_data_file(source: str) -> Path | None:
    """The data.yaml that ``source`` is or holds; None if it is no data set in YOLO's format.

    Raises:
        DataError: A folder has several.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return path
    if not path.is_dir():
        return None
    found = [file for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if "kpt_shape" in _peek(file)]
    if len(found) > 1:
        raise DataError(f"{source}: the data set could be any of {', '.join(map(str, found))}; name the file itself")
    return found[0] if found else None


def has_labels_alone(source: str) -> bool:
    """Whether a folder has YOLO's label files but no data.yaml, as Label Studio exports them."""
    places = ("labels/*.txt", "labels/*/*.txt", "*/labels/*.txt")
    return find_data_file(source) is None and any(next(Path(source).glob(place), None) for place in places)


def read_data_file(path: Path) -> DataFile:
    """Read and check a data.yaml.

    Raises:
        DataError: A part is missing or wrong, or a split is not there; the message says what was expected.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected path, train, val, names and kpt_shape, found a {type(content).__name__}")
    classes = _classes(content.get("names"), content.get("nc"), path)
    form = _form(content.get("kpt_shape"), len(classes), path)
    given = {split: content[split] for split in SPLITS if content.get(split)}
    root = _root(content.get("path"), path, given)
    splits = {split: _places(places, root, f"{path}: {split}") for split, places in given.items()}
    if not splits:
        raise DataError(f"{path}: no split; expected train, val or test")
    names = _keypoint_names(content.get("kpt_names"), classes, form.keypoints, path)
    return DataFile(path, root, splits, classes, form, names, _flip(content.get("flip_idx"), form.keypoints, path))


def images_of(data: DataFile, split: str, problems: Problems) -> list[Path]:
    """The images of a split, sorted; what else is in its folders and lists is added to ``problems``."""
    images: dict[Path, None] = {}
    for place in data.splits[split]:
        if place.suffix == LISTS:
            images |= dict.fromkeys(_listed(place, data.root, problems))
            continue
        files = [Path(folder, name) for folder, _, names in os.walk(place, followlinks=True) for name in names]
        for file in sorted(files):
            if file.suffix.lower() in IMAGE_ENDINGS:
                images[file] = None
            elif not (file.suffix == LISTS and label_path(file) == file):  # a label beside its image
                what = f"no image, by its name, which ends in {file.suffix!r}"
                problems.add("files that are no images", str(file), what, harmless=True)
        labels = label_path(place / "x").parent
        for label in sorted(labels.rglob(f"*{LISTS}")) if labels != place else ():
            stem = place / label.relative_to(labels).with_suffix("")
            if not any(stem.with_name(stem.name + ending) in images for ending in _endings()):
                problems.add("labels without an image", str(label), f"no image {stem}.*")
    return sorted(images)


def label_path(image: Path) -> Path:
    """The label file of an image: ``labels`` in place of the last folder ``images``, and the ending ``.txt``."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(LISTS)


def _endings() -> Iterator[str]:
    return (spelled for ending in IMAGE_ENDINGS for spelled in (ending, ending.upper()))


def _peek(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:100_000]
    except OSError:
        return ""


def _classes(names: Any, count: Any, path: Path) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: names has the numbers {sorted(names, key=str)}, expected 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path}: names is {names!r}, expected the names of the classes, as a list or by number")
    if count is not None and count != len(names):
        raise DataError(f"{path}: nc is {count!r}, but names has {len(names)} classes")
    return tuple(map(str, names))


def _form(shape: Any, classes: int, path: Path) -> LabelFormat:
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)
    if not whole or shape[0] < 1 or shape[1] not in (2, 3):
        raise DataError(
            f"{path}: kpt_shape is {shape!r}, expected [keypoints, 2 or 3], as every data set of keypoints has"
        )
    return LabelFormat(classes, *shape)


def _root(given: Any, path: Path, splits: Mapping[str, Any]) -> Path:
    """The root of the data set: ``path`` of the file where that exists, else the folder of the file.

    A relative ``path`` starts at the folder of the file or at the current one: where the splits are.
    """
    folder = path.absolute().parent
    if given in (None, ""):
        return folder
    places = dict.fromkeys(Path(base, str(given)).expanduser() for base in (folder, Path.cwd()))
    there = {place.resolve(): place for place in places if place.is_dir()}
    if len(there) > 1:
        there = {key: place for key, place in there.items() if _has_all(splits, place)} or there
    if len(there) > 1:
        raise DataError(f"{path}: path {given} could be {' or '.join(map(str, there))}; write the whole path")
    return next(iter(there.values()), folder)


def _has_all(splits: Mapping[str, Any], root: Path) -> bool:
    """Whether all splits are below a folder."""
    try:
        return all(_places(places, root, split) for split, places in splits.items())
    except DataError:
        return False


def _places(given: Any, root: Path, what: str) -> tuple[Path, ...]:
    places = given if isinstance(given, list) else [given]
    return tuple(_place(str(place), root, what) for place in places)


def _place(given: str, root: Path, what: str) -> Path:
    """A folder or list file. Roboflow writes ``../train/images`` for a folder that is beside the data.yaml."""
    stripped = given
    while stripped.startswith("../"):
        stripped = stripped.removeprefix("../")
    places = dict.fromkeys(Path(root, name).expanduser() for name in (given, stripped))
    there = {
        place.resolve(): place for place in places if place.is_dir() or (place.is_file() and place.suffix == LISTS)
    }
    if len(there) > 1:
        raise DataError(f"{what} {given} could be {' or '.join(map(str, there))}; write the whole path")
    if not there:
        raise DataError(f"{what}: no folder and no list {given}; looked for {', '.join(map(str, places))}")
    return Path(os.path.normpath(next(iter(there.values()))))


def _listed(file: Path, root: Path, problems: Problems) -> Iterator[Path]:
    """The images that a list names, relative to the list or to the root; those that are not there are problems."""
    for number, line in enumerate(file.read_text(errors="surrogateescape").splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        image = next((place for place in (file.parent / name, root / name) if place.is_file()), None)
        if image is None:
            problems.add("missing images", f"{file}:{number}", f"no image {name}")
        else:
            yield Path(os.path.normpath(image))


def _keypoint_names(given: Any, classes: Sequence[str], count: int, path: Path) -> tuple[tuple[str, ...], ...]:
    if given is None:
        return (tuple(f"keypoint_{number}" for number in range(count)),) * len(classes)
    lists = (
        [given.get(number) for number in range(len(classes))] if isinstance(given, Mapping) else [given] * len(classes)
    )
    for names in lists:
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"{path}: kpt_names has {names!r}, expected {count} names for each of {len(classes)} classes"
            )
    return tuple(tuple(names) for names in lists if names)


def _flip(given: Any, count: int, path: Path) -> tuple[int, ...] | None:
    if given is None or given == []:
        return None
    whole = isinstance(given, list) and sorted(map(str, given)) == sorted(map(str, range(count)))
    if not whole or any(given[given[number]] != number for number in range(count)):
        raise DataError(
            f"{path}: flip_idx is {given!r}, expected for each of {count} keypoints the one it changes with"
        )
    return tuple(given)
