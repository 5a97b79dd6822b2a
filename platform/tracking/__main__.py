"""Command line of tracking: ``python -m posefleet.platform.tracking sync SPOOL_DIR``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from posefleet.command_line import HELP, fail, parse, report_error
from posefleet.platform.runtime.redaction import restored
from posefleet.platform.tracking.client import TrackingError, explained, tracking_uri
from posefleet.platform.tracking.runs import SyncOptions
from posefleet.platform.tracking.sender import Sender
from posefleet.platform.tracking.spool import Spool


def sync_spool(spool_dir: Path | str, uri: str | None = None) -> int:
    """Send what a training left in its spool; safe at any time, as often as you like, also beside a running training.

    Args:
        uri: Where to send it; None: where the training meant to; a password comes from $MLFLOW_TRACKING_URI.

    Returns:
        The number of events sent.

    Raises:
        ValueError: The folder is not a spool.
        TrackingError: MLflow does not answer or refuses; the events stay.
    """
    spool = Spool(spool_dir)
    header = spool.header()
    uri = tracking_uri(uri or restored(header["uri"]))
    with explained(uri):
        return Sender(uri, header["run_id"]).send(spool)


def main(arguments: Sequence[str] | None = None) -> int:
    """``sync SPOOL_DIR``: returns the exit status."""
    program = "python -m posefleet.platform.tracking"
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if verb != "sync" and verb not in HELP:
        fail(f"{verb!r} is no command; write {program} sync SPOOL_DIR")
    options, _ = parse(
        SyncOptions,
        rest if verb == "sync" else [verb],
        program=f"{program} sync",
        about="Send MLflow the events that a training kept while its server was down.",
    )
    try:
        count = sync_spool(options.spool_dir, options.uri)
    except (ValueError, TrackingError) as error:
        report_error(error)
        return 1
    sys.stdout.write(f"{count} events sent from {options.spool_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
