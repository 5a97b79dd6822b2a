"""Convert keypoints from YOLO's pose format to COCO's, and from COCO's to YOLO's.

posefleet convert /data/dogs/data.yaml              # YOLO to COCO: annotations/ and schema.yaml beside the images
posefleet convert /data/dogs --out /data/dogs-coco
posefleet convert /data/coco --split val2017 --out /data/coco-yolo    # COCO, or a label tool's export, to YOLO

The direction follows from what is given. Lines and images that are wrong are named with file and line and counted;
nothing is written until they are corrected or left out with --allow-errors. See docs/data.md.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Argument, Place, parse, report_error
from posefleet.platform.runtime.paths import resolve_path

if TYPE_CHECKING:
    from posefleet.data.schemas.schema import KeypointSchema
    from posefleet.data.yolo.problems import Problems

MOST_SHOWN = 20
"""Problems that are printed; with more, all are in a file."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is converted, and where to."""

    source: Annotated[str, Argument("PATH")]
    """A data.yaml or the folder that has it (YOLO); or a data set folder or annotation file (COCO)."""
    out: Annotated[str, Place("FOLDER")] = ""
    """Folder of the result. Default for YOLO: the data set's own root, where its images are found again."""
    split: Annotated[str, "NAME"] = ""
    """From COCO: the split. Default: all that are there."""
    images: Annotated[str, Place("PATH")] = ""
    """From COCO: the image folder, if it is not at its usual place."""
    schema: Annotated[str, "NAME"] = "auto"
    """From COCO: a shipped schema, a YAML file, or auto: what the annotation file names."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """From COCO: categories whose annotations are read; all: every one that lists keypoints. Default: the only one that
    can be meant."""
    copy: bool = False
    """To YOLO: copy the images. Default: link them, which takes no space."""
    allow_errors: bool = False
    """Leave out lines and images that are wrong, instead of writing nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a data set. Exit status: 0 finished, 1 something in it is wrong, 2 bad arguments or files."""
    options, _ = parse(Options, arguments, command="convert", about=__doc__ or "")
    from posefleet.data.yolo.data_file import find_data_file, has_labels_alone

    try:
        source = resolve_path(options.source)
        data_file = None if "://" in source else find_data_file(source)
        if not options.out and "://" not in source and has_labels_alone(source):
            raise ValueError(
                f"{source}: labels of YOLO's format, but no data.yaml, which says how many keypoints they have; "
                "write one (docs/data.md has an example)"
            )
        return _from_yolo(data_file, options) if data_file else _to_yolo(source, options)
    except (ValueError, OSError) as error:
        report_error(error)
        return 2


def _from_yolo(file: Path, options: Options) -> int:
    from posefleet.data.schemas.shipped import read_schema
    from posefleet.data.yolo.data_file import read_data_file
    from posefleet.data.yolo.problems import Problems
    from posefleet.data.yolo.to_coco import to_coco

    if options.split or options.images or options.category or options.copy or options.schema != "auto":
        raise ValueError("--split, --images, --schema, --category and --copy go with COCO's format, not with YOLO's")
    data = read_data_file(file)
    values = f"{data.form.keypoints} keypoints of {data.form.values} values"
    sys.stderr.write(f"{file}: root {data.root}, {values}, classes {', '.join(data.classes)}\n")
    problems, out = Problems(), options.out or str(data.root)
    with tempfile.TemporaryDirectory() as folder:
        done = list(to_coco(data, folder, problems))
        if not _may_go_on(problems, options, out):
            return 1
        shutil.copytree(folder, out, dirs_exist_ok=True)
    lines = [f"{out}:"]
    for split in done:
        name = split.annotation_file.removeprefix(f"{folder}/")
        lines.append(f"  {name}: {split.images:,} images, {split.people:,} people, {split.without_label:,} with nobody")
    for path in sorted(Path(out).glob("schema*.yaml")):
        lines += [f"  {path.name}", *_doubts(read_schema(str(path)), file.name)]
    if Path(out).resolve() != data.root.resolve():
        lines.append(f"  file names are relative to {data.root}: read it with --images {data.root}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _doubts(schema: "KeypointSchema", file: str) -> list[str]:
    """What a user should know about a schema that YOLO's format does not fully describe."""
    doubts = []
    if schema.keypoints[0] == "keypoint_0":
        doubts.append(f"    keypoints have numbers for names: {file} has no kpt_names")
    if not schema.flip_pairs:
        doubts.append(
            f"    no keypoint has a mirror partner, by flip_idx of {file} or by left and right in the names; "
            "if some have, add flip_idx and convert again, or train with --data.augment.flip 0"
        )
    return doubts


def _to_yolo(source: str, options: Options) -> int:
    from posefleet.data.coco.file_schema import read_file_schema
    from posefleet.data.coco.source import find_source, find_splits
    from posefleet.data.schemas.shipped import choose_schema
    from posefleet.data.yolo.from_coco import class_name, from_coco
    from posefleet.data.yolo.problems import Problems

    if not options.out or "://" in options.out:
        raise ValueError("--out is missing: a folder on this machine for data.yaml, images and labels")
    category = options.category
    splits = [options.split] if options.split else find_splits(source) or [""]
    sources = [find_source(source, split, options.images or None) for split in splits]
    sys.stderr.write("".join(f"{found}\n" for found in sources))
    schema = choose_schema(options.schema, lambda: read_file_schema(sources[0].annotation_file, category))
    problems, allowed = Problems(), options.allow_errors
    done = from_coco(sources, schema, options.out, problems, category=category, allow_errors=allowed, copy=options.copy)
    if not _may_go_on(problems, options, options.out):
        Path(options.out, "data.yaml").unlink()
        return 1
    lines = [f"{options.out}/data.yaml: {len(schema)} keypoints, class {class_name(sources[0], schema, category)}"]
    for split in done:
        what = ", ".join(f"{count:,} {kind}" for kind, count in split.counts.items())
        lines.append(f"  {split.key} (from {split.split or 'the only split'}): {split.images:,} images, {what}")
        lines += [f"    {note}" for note in split.notes]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _may_go_on(problems: "Problems", options: Options, out: str) -> bool:
    """Print the problems; whether the result may be used in spite of them."""
    if not len(problems):
        return True
    sys.stderr.write("".join(f"  {line}\n" for line in problems.lines[:MOST_SHOWN]))
    if len(problems) > MOST_SHOWN:
        file = Path(out, "convert_problems.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in problems.lines), errors="backslashreplace")
        sys.stderr.write(f"  ... all of them are in {file}\n")
    if options.allow_errors or problems.harmless == len(problems):
        sys.stderr.write(f"left out: {problems}\n")
        return True
    report_error(f"{problems}; correct them, or leave them out: --allow-errors")
    return False


if __name__ == "__main__":
    raise SystemExit(main())
