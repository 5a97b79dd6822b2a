"""Train a method on shards: in this process or on a Ray cluster.

posefleet train smpr --config jobs/configs/smpr.yaml --data.train /data/shards/train2017 --scaling.num_workers 4
python jobs/train.py smpr --config jobs/configs/smpr_demo.yaml --data.train /data/shards/train --scaling.num_workers 0
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from posefleet.command_line import HELP, fail
from posefleet.platform.config.cli import dotted, parse_experiment

CONFIGS = Path(__file__).resolve().parent / "configs"
MOST_SHOWN = 12
"""Number of a method's settings in ``--help``, so that it fits on two screens."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the method named first. Exit status: 0 finished, 1 failed, 2 bad arguments, 130 stopped on request."""
    method, *rest = sys.argv[1:] if arguments is None else arguments or [""]
    if not method or method.startswith("-"):
        from posefleet.light_import import light_import

        names = ", ".join(light_import("posefleet.models", "available_methods")())
        if method not in HELP:
            fail(f"the method is missing; give one of {names}: posefleet train METHOD")
        sys.stdout.write(f"usage: posefleet train METHOD [--OPTION VALUE ...]\n\n{__doc__}\n")
        sys.stdout.write(
            f"METHOD is one of {names}, or a module of your own (docs/parts.md).\n"
            "posefleet train METHOD --help shows its options.\n"
        )
        return 0
    if "." in method:  # a module of the caller's own, who names it here
        from posefleet.models import load_method, trust

        try:
            trust(method)
            load_method(method)
        except ValueError as error:
            fail(str(error))
    return train_method(method, rest)


def train_method(method: str, arguments: Sequence[str] | None = None) -> int:
    """Train ``method``; every jobs/train_METHOD.py runs this. Returns an exit status, see :func:`main`."""
    experiment = parse_experiment(method, arguments, shown=_changed(method))
    from posefleet.platform.training.launch import train  # imports Ray and MLflow, which --help does not need

    return train(experiment)


def _changed(method: str) -> list[str]:
    """Settings of the method that people change: those in its shipped configs, the published config's first."""
    import yaml

    found: dict[str, None] = {}
    for file in (CONFIGS / f"{method}.yaml", CONFIGS / f"{method}_demo.yaml"):
        if file.exists():
            found |= dict.fromkeys(dotted(yaml.safe_load(file.read_text()).get("model", {}), "model."))
    return list(found)[:MOST_SHOWN]


if __name__ == "__main__":
    raise SystemExit(main())
