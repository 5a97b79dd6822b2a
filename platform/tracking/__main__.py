"""The command that sends a spool to MLflow: ``python -m posefleet.platform.tracking sync SPOOL_DIR``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from posefleet.command_line import HELP, fail, parse, report_error
from posefleet.platform.runtime.redaction import restored
from posefleet.platform.tracking.client import TrackingError, explained, tracking_uri
from posefleet.platform.tracking.runs import SyncOptions
from posefleet.platform.tracking.sender import Sender
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.tracking.tracker import listed


def sync_spool(spool_dir: Path | str, uri: str | None = None) -> int:
    """Send the events that a training run left in its spool; safe to repeat, and while the run is training.

    Events that the server refused before are tried again; ``Spool.refused`` lists those that it still refuses.

    Args:
        spool_dir: The spool folder of the run.
        uri: MLflow store. None: the store of the training run, with its password from $MLFLOW_TRACKING_URI.

    Returns:
        The number of events that the server took.

    Raises:
        ValueError: The folder is not a spool, or the URI is not usable.
        TrackingError: MLflow takes no events or does not answer; they stay in the spool.
    """
    spool = Spool(spool_dir)
    header = spool.header()
    uri = tracking_uri(uri or restored(header["uri"]))
    with explained(uri):
        sender = Sender(uri, header["run_id"])
        return sender.send_refused(spool) + sender.send(spool)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sync SPOOL_DIR`` and return the exit status: 1 if MLflow does not answer or refuses an event."""
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
    except (ValueError, OSError, TrackingError) as error:
        report_error(error)
        return 1
    sys.stdout.write(f"{count} events sent from {options.spool_dir}\n")
    if refused := Spool(options.spool_dir).refused():
        report_error(f"MLflow does not take {listed(refused)}; they stay in {options.spool_dir}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
