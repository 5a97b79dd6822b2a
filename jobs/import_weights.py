"""Import weights that the authors of a method published, as a checkpoint or as a version of a registered model.

posefleet import --method inspose --weights inspose_r50.pth --out runs/inspose-released
posefleet import --method logocap --weights logocap-hrnet-w32.pth.tar --register logocap
posefleet evaluate --checkpoint runs/inspose-released --source /data/coco --split val2017

The file is read without running code that it may hold. The checkpoint has the preset "released" of its method: the
settings with which it gives the authors' poses. docs/published-weights.md says where the authors offer their files.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Given, Place, one_of, report_error
from posefleet.platform.config.cli import override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    from posefleet.platform.checkpoints.format import Meta
    from posefleet.platform.checkpoints.released import Weights

CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which file to import, and where to."""

    method: Annotated[str, "NAME"]
    """Method of the weights: smpr, inspose or logocap."""
    weights: Annotated[str, Place("FILE")]
    """The authors' file, as they offer it."""
    out: Annotated[str, Place("DIR")] = ""
    """Folder of the checkpoint: a path or URI."""
    register: Annotated[str, "NAME"] = ""
    """Register the weights as a version of this model with the alias "released", instead of --out. Nothing is measured:
    posefleet promote --run models:/NAME@released does that."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store for --register. Default: $MLFLOW_TRACKING_URI, else mlflow.db under runs/."""

    def __post_init__(self) -> None:
        one_of(self, "out", "register")


def main(arguments: Sequence[str] | None = None) -> int:
    """Import weights. Exit status: 0 written, 2 bad input and nothing is written."""
    options, overrides = parse_with_settings(
        Options, arguments, command="import", about=__doc__ or "", shown=("schema", "data.eval", "evaluate.flip")
    )
    try:
        return _import(options, overrides)
    except (ValueError, OSError, PlatformError) as error:
        report_error(error)
        return 2


def _import(options: Options, overrides: Given) -> int:
    from posefleet.platform.checkpoints.released import checked_weights, model_card, read_released, write_imported
    from posefleet.platform.config.loading import read_yaml
    from posefleet.platform.runtime.paths import MODELS
    from posefleet.platform.tracking.registry import check_model_name

    address = options.out or f"{MODELS}{check_model_name(options.register)}@released"
    imported = read_released(options.weights, options.method)
    preset = read_yaml(CONFIGS / f"{options.method}_released.yaml")
    experiment = override(imported.experiment(preset), overrides)
    weights, meta = checked_weights(imported, experiment), imported.meta(experiment)
    card = model_card(meta, address=address)
    if options.out:
        write_imported(options.out, meta, weights, card)
    else:
        _register(options, meta, weights, card)
    sys.stdout.write(
        f"{address}: {meta.provenance['imported']}, {len(weights)} tensors\n"
        f"  licence   {meta.provenance['licence']}\n"
        f"  reported  {meta.provenance['reported']}\n"
        f"  check     posefleet evaluate --checkpoint {address} --source /data/coco --split val2017\n"
    )
    return 0


def _register(options: Options, meta: "Meta", weights: "Weights", card: str) -> None:
    import tempfile

    from posefleet.platform.checkpoints.released import RELEASED, imported_release
    from posefleet.platform.tracking.client import pages, store_uri
    from posefleet.platform.tracking.registry import promote

    uri = store_uri(options.tracking)
    with tempfile.TemporaryDirectory() as folder:
        release = imported_release(meta, weights, card, Path(folder))
        version = promote(uri, options.register, release, RELEASED)
    sys.stdout.write(f"version {version.number} of {version.name}; pages  {pages(uri)}\n")


if __name__ == "__main__":
    raise SystemExit(main())
