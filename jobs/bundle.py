"""Pack what somebody else needs to check a run's claim into one file: settings, predictions, annotations, numbers.

posefleet bundle runs/smpr-a
posefleet bundle models:/smpr@champion --data.eval /data/shards/val2017 --out champion.tar
posefleet bundle runs/smpr-a --no-truth --no-weights --sample 0    # without annotations, weights and pictures

It evaluates the run once, and writes nothing if the numbers are not those that the run recorded. The file has no paths
and no names of users. docs/bundles.md says what is in it; posefleet verify checks it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from posefleet.command_line import Argument, Given, Place, report_error
from posefleet.platform.config.cli import EVALUATE, override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.paths import MODELS, resolve_path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which run is packed, and what of it."""

    run: Annotated[str, Argument("RUN")]
    """A run's folder (its best checkpoint), a checkpoint, or models:/NAME@ALIAS."""
    out: Annotated[str, Place("FILE.tar")] = ""
    """File to write. Default: the name of RUN with .bundle.tar, in the current folder."""
    no_truth: bool = False
    """Leave out the annotations; verify then needs --data."""
    no_weights: bool = False
    """Leave out the weights; verify then cannot predict again."""
    sample: int = 4
    """Number of pictures of the data that are drawn with their poses and go into the file. 0: none."""
    allow_different: bool = False
    """Write the file even if the numbers are not those that the run recorded; both are in it."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"--sample {self.sample} must be 0 or more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a bundle. Exit status: 0 written, 2 bad input or other numbers than the run's, and nothing is written."""
    options, overrides = parse_with_settings(Options, arguments, command="bundle", about=__doc__ or "", shown=EVALUATE)
    try:
        return _bundle(options, overrides)
    except (ValueError, OSError, PlatformError) as error:
        report_error(error)
        return 2


def _bundle(options: Options, overrides: Given) -> int:
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.bundles.layout import TRUTH
    from posefleet.platform.bundles.write import Content, write_bundle
    from posefleet.platform.checkpoints.format import WEIGHTS, read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.runtime.worker import LocalWorker

    run = resolve_path(options.run)
    checkpoint = find_checkpoint(run, tracking=options.tracking)
    experiment = override(read_meta(checkpoint).experiment, overrides)
    name = run.removeprefix(MODELS).replace("@", "-").rstrip("/").rpartition("/")[2]
    out = options.out or resolve_path(f"{name}.bundle.tar")
    content = Content(
        truth=not options.no_truth,
        weights=not options.no_weights,
        samples=options.sample,
        allow_different=options.allow_different,
    )
    keep_freed_memory()
    written = write_bundle(out, checkpoint, experiment, LocalWorker(), content)
    pictures = sum(member.startswith("samples/") for member in written.members)
    parts = {
        "annotations": TRUTH in written.members,
        "weights": WEIGHTS in written.members,
        f"{pictures} pictures of the data": pictures,
    }
    held, left = (", ".join(part for part, there in parts.items() if bool(there) is has) for has in (True, False))
    sys.stdout.write(
        f"{checkpoint}\nAP {written.evaluation.ap:.6f} on {written.data}, "
        f"{written.evaluation.protocol.images:,} images; "
        f"{_recorded(written.recorded, options.allow_different)}\n"
        f"{out}, {written.size / 2**20:.1f} MiB, {len(written.members)} members"
        f"{f'; it holds {held}' if held else ''}{f'; without {left}' if left else ''}\n"
        f"  check  posefleet verify {out} --data SHARDS\n"
    )
    return 0


def _recorded(recorded: bool, allow_different: bool) -> str:
    if not recorded:
        return "the run recorded no numbers of its own"
    return "not compared with what the run recorded" if allow_different else "as the run recorded"


if __name__ == "__main__":
    raise SystemExit(main())
