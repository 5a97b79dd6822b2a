"""Command line of the doctor: ``python -m posefleet.data.doctor /data/coco --split val2017``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from posefleet.command_line import Argument, parse, report_error

ABOUT = """Find what is wrong with a data set of keypoints in COCO's format before it costs GPU hours.

posefleet doctor /data/coco
posefleet doctor /data/coco --split val2017 --json report.json

Exit status: 0 no errors, 1 errors, 2 there is nothing to examine."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is examined, and where the report goes."""

    path: Annotated[str, Argument("PATH")]
    """Data set folder, in COCO's layout or as a label tool exports it, or an annotation file."""
    split: Annotated[str, "NAME"] = ""
    """Split: train2017, val2017, ... Default: all that are there."""
    images: Annotated[str, "PATH"] | None = None
    """Image folder, where it is not at its usual place."""
    schema: Annotated[str, "NAME"] = "auto"
    """Expected keypoints: a shipped schema, a YAML file, or auto: what the file itself names."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories whose annotations are read; all: every one that lists keypoints. Default: the only one that can be
    meant."""
    json: Annotated[str, "FILE"] = ""
    """Also write the report to this file."""
    workers: int | None = None
    """Threads that read images. Default: one for each core."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 when there are no errors, 1 when there are, 2 when there is nothing to examine."""
    options, _ = parse(Options, arguments, command="doctor", about=ABOUT)
    # These import torch, which --help does without.
    from posefleet.data.coco.source import find_source, find_splits
    from posefleet.data.doctor.examine import examine
    from posefleet.data.doctor.report import write_reports
    from posefleet.data.schemas.shipped import AUTO, choose_schema

    try:
        schema = None if options.schema == AUTO else choose_schema(options.schema)
        splits = [options.split] if options.split else find_splits(options.path) or [""]
        sources = [find_source(options.path, split, options.images) for split in splits]
    except ValueError as error:
        report_error(error)
        return 2
    sys.stderr.write("".join(f"{source}\n" for source in sources))
    reports = [
        examine(source, schema, category=options.category, workers=options.workers, progress=True) for source in sources
    ]
    sys.stdout.write("\n".join(report.as_text() for report in reports))
    if options.json:
        write_reports(options.json, reports)
    return 1 if any(report.errors for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
