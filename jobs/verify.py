"""Check a file that posefleet bundle wrote: its digests, every number that it claims, and on the data its predictions.

posefleet verify smpr-a.bundle.tar
posefleet verify smpr-a.bundle.tar --data /data/shards/val2017
posefleet verify smpr-a.bundle.tar --data /data/coco@val2017 --images 100 --json report.json

The file may come from anybody: no code in it is run, and it is read within bounds. docs/bundles.md says what each check
shows, and what it does not.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from posefleet.command_line import Argument, Place, parse, report_error
from posefleet.platform.bundles.tolerance import Tolerance
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.paths import resolve_path


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is checked, and on which data."""

    bundle: Annotated[str, Argument("BUNDLE")]
    """The file: a path or URI."""
    data: Annotated[str, Place("SHARDS")] = ""
    """The evaluated data, a folder of shards or FOLDER@SPLIT: also checks its fingerprint and annotations, and predicts
    again."""
    images: int = 0
    """Number of images that are predicted again, the first ones. 0: all."""
    allow_different: bool = False
    """Accept that the run recorded other numbers when it was trained, on other data or with other settings."""
    json: Annotated[str, Place("FILE")] = ""
    """Also write the result, with every difference, to this file."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    """How far new predictions may lie from those of the bundle."""

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"--images {self.images} must be 0 or more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a bundle. Exit status: 0 equal, 1 something differs, 2 bad input."""
    options, _ = parse(Options, arguments, command="verify", about=__doc__ or "")
    try:
        return _verify(options)
    except (ValueError, OSError, PlatformError) as error:
        report_error(error)
        return 2


def _verify(options: Options) -> int:
    from posefleet.data.io.files import write_file
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.bundles.verify import verify_bundle

    keep_freed_memory()
    report = verify_bundle(
        resolve_path(options.bundle),
        data=options.data,
        images=options.images,
        allow_different=options.allow_different,
        tolerance=options.tolerance,
    )
    sys.stdout.write(f"{report}\n")
    status = 1 if report.differs else 0
    if options.json:
        write_file(options.json, json.dumps({**report.as_dict(), "status": status}, indent=1).encode() + b"\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
