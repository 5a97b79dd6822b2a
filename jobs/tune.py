"""Search settings of decoding on what one checkpoint's network said, without training.

python jobs/tune.py --decode-only --checkpoint runs/smpr-r50 --space jobs/configs/spaces/smpr_decoding.yaml \\
    --samples 300 --data.eval /data/shards/val2017
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posefleet.data.evaluation import Evaluation
    from posefleet.platform.config import Experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad arguments and bad data."""
    options, overrides = _parse(arguments)
    from posefleet.data.errors import DataError
    from posefleet.platform.checkpoint import CheckpointError
    from posefleet.platform.config import fail

    try:
        return _decode_only(options, overrides)
    except (ValueError, DataError, CheckpointError, MemoryError) as error:
        fail(str(error))


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="jobs/tune.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --data.eval SHARDS, change the checkpoint's experiment before the search.",
    )
    parser.add_argument("--decode-only", action="store_true", required=True, help="the kind of search there is")
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run's folder (its best checkpoint)")
    parser.add_argument("--space", required=True, help="YAML of settings and their ranges, see jobs/configs/spaces/")
    parser.add_argument("--samples", type=int, default=200, help="trials in all (%(default)s)")
    parser.add_argument("--images", type=int, default=0, help="score on the first so many images; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the search (%(default)s)")
    parser.add_argument("--out", default="runs/tune", help="folder; the same one goes on (%(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    if options.samples < 1 or options.images < 0:
        parser.error(f"--samples {options.samples} must be at least 1 and --images {options.images} not negative")
    return options, overrides


def _decode_only(options: argparse.Namespace, overrides: list[str]) -> int:
    from posefleet.data.memory import keep_freed_memory
    from posefleet.data.shards import read_manifest
    from posefleet.platform.checkpoint import find_checkpoint, read_meta
    from posefleet.platform.config import override, resolve_path
    from posefleet.platform.redecode import Redecoder
    from posefleet.platform.search import Search
    from posefleet.platform.space import read_space
    from posefleet.platform.worker import LocalWorker

    checkpoint = find_checkpoint(resolve_path(options.checkpoint))
    base = override(read_meta(checkpoint).experiment, overrides)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, eval=resolve_path(base.data.eval)))
    if not base.data.eval:
        raise ValueError("nothing to score on; give --data.eval SHARDS")
    space = read_space(options.space, base)
    keep_freed_memory()
    redecoder = Redecoder(checkpoint, base, LocalWorker().device, images=options.images)
    if trained := [name for name in space if not redecoder.may_vary(name)]:
        may = ", ".join(redecoder.variable)
        raise ValueError(f"{options.space}: {', '.join(trained)} needs training; --decode-only varies {may}")
    about = {
        "checkpoint": checkpoint,
        "data": read_manifest(base.data.eval).fingerprint,
        "images": str(options.images),
    }
    search = Search(Path(resolve_path(options.out)), base, space, about=about, seed=options.seed)

    def score(experiment: "Experiment") -> Mapping[str, float]:
        return redecoder.evaluate(experiment).statistics

    search.run(score, options.samples)
    best = search.best()
    remark = _gain(redecoder.evaluate(search.experiment(best)), redecoder.evaluate(base)) if best else ""
    text = search.write(remark)
    sys.stdout.write(f"{text}\n\n  best   {search.folder / 'best.yaml'}\n  table  {search.folder / 'search.md'}\n")
    return 0


def _gain(best: "Evaluation", own: "Evaluation") -> str:
    """What the search brought, and whether that is more than chance on these images."""
    from posefleet.data.significance import CONFIDENCE, difference

    if best.matches is None or own.matches is None:
        return ""
    found = difference(best.matches, own.matches)
    judged = "more than noise" if found.certain else "may be noise"
    return (
        f"Best against the checkpoint's own settings: AP {found}, {judged}; "
        f"in brackets {CONFIDENCE:.0%} of draws of images. "
        "It was chosen on these images, so expect less on others."
    )


if __name__ == "__main__":
    raise SystemExit(main())
