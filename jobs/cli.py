"""The command ``posefleet``: each verb runs a job, and takes the options that the job's own file takes."""

import importlib
import os
import sys
from collections.abc import Sequence

from posefleet import __version__
from posefleet.command_line import HELP, LIST_OPTIONS, completions, fail
from posefleet.light_import import light_import
from posefleet.option_names import nearest

VERBS = {
    "doctor": ("data.doctor.__main__", "Find what is wrong with a data set in COCO's format."),
    "schema": ("jobs.schema", "Show which keypoints a data set or model has, or estimate their sigmas."),
    "convert": ("jobs.convert", "Convert keypoints from YOLO's text files to COCO's format, and back."),
    "shard": ("jobs.shard_coco", "Write a data set as shards, which training reads."),
    "train": ("jobs.train", "Train a method: posefleet train smpr --config jobs/configs/smpr.yaml"),
    "import": ("jobs.import_weights", "Import weights that a method's authors published."),
    "evaluate": ("jobs.evaluate", "Score a checkpoint on a data set: AP, and what goes wrong."),
    "review": ("jobs.review", "Find labels that are probably wrong, by what models predict."),
    "compare": ("jobs.compare", "Compare methods, runs or registered models under equal conditions."),
    "tune": ("jobs.tune", "Search better settings, by training trials or for decoding alone."),
    "promote": ("jobs.promote", "Put a trained model into the registry through a gate of checks."),
    "export": ("jobs.export", "Write a checkpoint as a file for ONNX Runtime, OpenVINO or TensorRT."),
    "bundle": ("jobs.bundle", "Pack what others need to check a run's numbers into one file."),
    "verify": ("jobs.verify", "Check a file of bundle: its numbers, and on the data its predictions."),
    "predict": ("jobs.predict", "Find the people in folders of images, in videos or in a data set."),
    "serve": ("jobs.serve", "Serve models over HTTP."),
    "demo": ("jobs.demo", "Run the whole pipeline on this machine with rendered people."),
}
"""Verb -> (module in the package posefleet whose ``main`` runs it, what the verb does)."""

INTERRUPTED = 130
GO_ON = {
    "shard": "the same command writes the shards that are missing",
    "train": "the same command with the same --run.name goes on from the last checkpoint",
    "tune": "posefleet tune --resume FOLDER goes on",
    "predict": "the same command predicts what is missing",
}
"""Verb -> how it goes on after Ctrl-C; the others begin again."""

SCHEMA_ACTIONS = ("show", "sigmas")
"""What the verb ``schema`` does, for completion."""

COMPLETION = (
    '[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit\n'
    "complete -o default -C 'posefleet --complete' posefleet\n"
)
"""Shell code that switches on completion of ``posefleet`` in bash and zsh."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit status: 0 finished, 1 failed, 2 bad arguments, 130 stopped on request."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in HELP:
        sys.stdout.write(_overview())
    elif verb == "--version":
        sys.stdout.write(f"posefleet {__version__}\n")
    elif verb == "--completion":
        sys.stdout.write(COMPLETION)
    elif verb == "--complete":
        sys.stdout.write("".join(f"{word}\n" for word in _completions()))
    elif verb in VERBS:
        return _run(verb, rest)
    else:
        guess = nearest(verb, VERBS)
        fail(f"{verb!r} is no command" + (f"; did you mean {guess}?" if guess else f"; there are {', '.join(VERBS)}"))
    return 0


def _run(verb: str, arguments: list[str]) -> int:
    module = f"posefleet.{VERBS[verb][0]}"
    try:
        status: int = importlib.import_module(module).main(arguments)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted{f'; {GO_ON[verb]}' if verb in GO_ON else ''}\n")
        return INTERRUPTED
    return status


def _overview() -> str:
    verbs = "".join(f"  {verb:10}{description}\n" for verb, (_, description) in VERBS.items())
    return (
        "usage: posefleet COMMAND [--OPTION VALUE ...]\n\n"
        f"COCO keypoints to a served multi-person pose estimator, on a Ray cluster.\n\n{verbs}\n"
        "  posefleet COMMAND --help shows the options people change, --help-all all of them.\n"
        "  posefleet --version shows the version.\n"
        '  eval "$(posefleet --completion)" completes commands and options in bash and zsh.\n\n'
        "On a cluster the same commands are jobs: ray job submit --working-dir . -- python jobs/train_smpr.py --help\n"
    )


def _completions() -> list[str]:
    """Words that fit at the cursor; bash asks for them with ``complete -C`` and ``COMP_LINE``, ``COMP_POINT``."""
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "10000"))]
    _, *words = line.split() or [""]
    current = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        return [verb for verb in (*VERBS, "--help", "--version", "--completion") if verb.startswith(current)]
    if words == ["train"]:
        return [name for name in light_import("posefleet.models", "available_methods")() if name.startswith(current)]
    if words == ["schema"] and not current.startswith("-"):
        return [action for action in SCHEMA_ACTIONS if action.startswith(current)]
    if words[0] not in VERBS:
        return []
    place = words[:2] if words[0] == "train" else words[:1]
    return completions(lambda: _run(place[0], [*place[1:], LIST_OPTIONS]), words[-1], current)


if __name__ == "__main__":
    raise SystemExit(main())
