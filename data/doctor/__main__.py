"""Command line of the doctor: ``python -m posefleet.data.doctor /data/coco --split val2017``."""

import argparse
import sys

from posefleet.data.coco.source import find_source, find_splits
from posefleet.data.doctor.examine import examine
from posefleet.data.doctor.findings import write_reports
from posefleet.data.keypoints import load_schema
from posefleet.data.loading.memory import collect_garbage_rarely


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 when there are no errors, 1 when there are, 2 when there is nothing to examine."""
    collect_garbage_rarely()
    parser = argparse.ArgumentParser(prog="python -m posefleet.data.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("path", help="data set folder in COCO layout, or an annotation file")
    parser.add_argument("--split", help="train2017, val2017, ...; all that are there when not given")
    parser.add_argument("--images", help="image folder, where it is not at its usual place")
    parser.add_argument("--schema", default="coco17", help="keypoint schema (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the report here")
    parser.add_argument("--workers", type=int, help="threads that read images (default: one a core)")
    options = parser.parse_args(arguments)
    try:
        schema = load_schema(options.schema)
        splits = [options.split] if options.split else find_splits(options.path) or ["train2017"]
        sources = [find_source(options.path, split, options.images) for split in splits]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    reports = [examine(source, schema, workers=options.workers, progress=True) for source in sources]
    sys.stdout.write("\n".join(report.as_text() for report in reports))
    if options.json:
        write_reports(options.json, reports)
    return 1 if any(report.errors for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
