"""Write a COCO keypoint data set as shards: on this machine or on a Ray cluster.

posefleet shard --source /data/coco --split train2017 --out /data/shards
posefleet shard --source /data/dogs --held-out 0.2 --out /data/dogs-shards
ray job submit --working-dir . -- python jobs/shard_coco.py --source /nfs/coco --split train2017 --out s3://bucket/coco

The shards of a split go to OUT/SPLIT, those of --held-out to OUT/train and OUT/val. To finish an interrupted run, run
the same command again; if all shards are complete, nothing changes. Damaged, missing or mismatched images are left out
and listed.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Place, parse, report_error

if TYPE_CHECKING:
    from posefleet.data.coco.source import Source
    from posefleet.data.schemas.schema import KeypointSchema
    from posefleet.data.shards.build import ShardingResult

MAX_SKIPPED_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Data set to write as shards, and where to write them."""

    source: Annotated[str, Place("PATH")]
    """Data set folder, in COCO's layout or as a label tool exports it, or an annotation file."""
    out: Annotated[str, Place("FOLDER")]
    """Folder that every node sees, s3://bucket/prefix, ... The shards go to its subfolder SPLIT."""
    split: Annotated[str, "NAME"] = ""
    """Split of the data set: train2017, val2017, ... Default: the only one that is there."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if it is not at its usual place."""
    schema: Annotated[str, "NAME"] = "auto"
    """Keypoints: a shipped schema, a YAML file, or auto: what the annotation file names."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories whose annotations are read; all: every one that lists keypoints. Default: the only one that can be
    meant."""
    shard_mib: float = 128.0
    """Size of a shard, MiB. Larger shards give fewer files and a coarser shuffle."""
    shuffle_seed: int = 0
    """Seed of the random order of images in the shards."""
    limit: int | None = None
    """Take only the first N images. Default: all."""
    held_out: float = 0.0
    """Share of the images, 0..1, that is held out for evaluation: they go to OUT/val, the others to OUT/train. It is
    chosen by file names, so a data set that grows keeps its division. 0: one part."""
    in_process: bool = False
    """Write in this process without Ray, for small data sets."""
    skip_doctor: bool = False
    """Do not run the doctor first, which also warns of what is doubtful. Errors are found in any case."""
    allow_errors: bool = False
    """Leave out the records that have errors (annotations or images), and list them, instead of refusing the file."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out must be from 0 to below 1, not {self.held_out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the shards. Exit status: 0 finished, 1 the data set cannot be used, 2 bad arguments."""
    options, _ = parse(Options, arguments, command="shard", about=__doc__ or "")
    from posefleet.data.coco.file_schema import read_file_schema
    from posefleet.data.coco.source import find_source  # imports torch, which --help does not need
    from posefleet.data.errors import DataError
    from posefleet.data.schemas.shipped import choose_schema
    from posefleet.data.shards.build import shard_coco

    try:
        source = find_source(options.source, options.split, options.images or None)
        sys.stderr.write(f"{source}\n")
        if not source.split and not options.held_out:
            raise ValueError(f"{source.annotation_file} names no split; --split NAME names the folder of the shards")
        schema = choose_schema(options.schema, lambda: read_file_schema(source.annotation_file, options.category))
        if not options.skip_doctor and not _healthy(source, schema, options):
            return 1
        for name, take in _parts(options, source.split).items():
            root = f"{options.out.rstrip('/')}/{name}"
            result = shard_coco(
                replace(source, split=name),
                root,
                schema,
                shard_mib=options.shard_mib,
                seed=options.shuffle_seed,
                limit=options.limit,
                parallel=not options.in_process,
                category=options.category,
                allow_errors=options.allow_errors,
                take=take,
            )
            sys.stdout.write(_summary(result, root))
    except (DataError, OSError) as error:
        report_error(error)
        return 1
    except ValueError as error:
        report_error(error)
        return 2
    return 0


def _parts(options: Options, split: str) -> "dict[str, Callable[[str], bool] | None]":
    """Name of each part that is written, and which file names it takes; None: all."""
    share = options.held_out
    if not share:
        return {split: None}
    from posefleet.data.coco.split import is_held_out

    return {"train": lambda name: not is_held_out(name, share), "val": lambda name: is_held_out(name, share)}


def _healthy(source: "Source", schema: "KeypointSchema", options: Options) -> bool:
    """Whether the annotations may be used; images are checked later, when they are written."""
    from posefleet.data.doctor.examine import examine

    report = examine(source, schema, category=options.category, check_images=False)
    kinds = ", ".join(f"{finding.code} ({finding.count:,})" for finding in report.errors or report.warnings)
    if report.errors:
        sys.stderr.write(report.as_text())
        if not options.allow_errors:
            report_error(
                f"{source.annotation_file}: {kinds}; correct it, or leave out the records with errors: --allow-errors"
            )
    elif kinds:
        sys.stderr.write(f"warning: {kinds}; posefleet doctor says more\n")
    return options.allow_errors or not report.errors


def _summary(result: "ShardingResult", root: str) -> str:
    from posefleet.data.coco.reader import left_out_sentences

    manifest = result.manifest
    counts, size = manifest.counts, sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{root}: {manifest.samples:,} samples, {manifest.labelled:,} of them with keypoint people",
        f"  categories: {result.categories}",
        f"  schema {manifest.schema.name} of {len(manifest.schema)} keypoints; names "
        f"{manifest.schema.sources.get('names', 'given')}",
        "  {people:,} people: {keypoint_people:,} with keypoints, {unlabelled:,} without, {crowd:,} crowds; "
        "{segmentations:,} segmentations of the last two".format(**counts),
        f"  {len(manifest.shards)} shards, {size / 2**20:,.1f} MiB; source fingerprint {manifest.fingerprint[:12]}",
    ]
    lines += [f"  {sentence}" for sentence in left_out_sentences(manifest.left_out)]
    if counts["bad_segmentations"]:
        lines.append(
            f"  warning: {counts['bad_segmentations']:,} segmentations of crowds and of people without keypoints left "
            "out, which cannot be used; losses ignore the boxes instead, and the doctor names them"
        )
    if manifest.skipped:
        lines.append(f"  {len(manifest.skipped):,} images skipped:")
        lines += [f"    {image['reason']}: {image['detail']}" for image in manifest.skipped[:MAX_SKIPPED_SHOWN]]
        if len(manifest.skipped) > MAX_SKIPPED_SHOWN:
            lines.append(f"    ... all of them are in {root}/manifest.json")
    for code, found in result.other_files.items():
        more = f" and {found.count - len(found.first):,} more" if found.count > len(found.first) else ""
        what = "other images of the folder" if code == "unlisted_image" else "files of the folder that are no images"
        lines.append(f"  {found.count:,} {what}, which are not read: {', '.join(found.first)}{more}")
    if result.shards_written:
        speed = result.samples_written / result.seconds
        lines.append(f"  wrote {result.shards_written} shards in {result.seconds:.1f} s, {speed:,.0f} images/s")
    else:
        lines.append(f"  nothing to do: every shard was there and whole ({result.seconds:.1f} s)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
