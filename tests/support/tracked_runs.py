"""Finds the MLflow runs of an experiment."""

from posefleet.platform.tracking.client import connect
from posefleet.platform.tracking.runs import RunSummary, read_run


def find_runs(uri: str, experiment_name: str, filter_string: str = "") -> list[RunSummary]:
    """Runs of an experiment that exists, newest first; ``filter_string`` is in MLflow's syntax."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None, f"{uri} has no experiment {experiment_name!r}"
    return [read_run(uri, run.info.run_id) for run in client.search_runs([experiment.experiment_id], filter_string)]
