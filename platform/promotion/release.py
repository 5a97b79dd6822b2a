"""Describes a version for the registry, from the gate's measurements: its files, tags and text."""

from collections.abc import Mapping
from pathlib import Path

from posefleet.platform.checkpoints.format import Meta, network_in
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import parameters, to_yaml
from posefleet.platform.exports.backends import backend_of, read_facts
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion.gate import GateReport
from posefleet.platform.promotion.shadow import Shadowing
from posefleet.platform.tracking.registry import CHECKPOINT, Release, signed


def new_release(
    named: str, meta: Meta, experiment: Experiment, split: Split, report: GateReport, folder: Path
) -> Release:
    """What the registry keeps of a candidate that becomes a new version.

    Args:
        named: The candidate as it was named: a run, a checkpoint or a registry address.
        meta: Metadata of its checkpoint.
        experiment: Its settings in the registry.
        split: Images that the gate scored it on.
        report: Outcome of the gate.
        folder: Folder with the files that the gate left; ``gate.txt`` and ``experiment.yaml`` are added.
    """
    scores = report.evaluation.as_dict() if report.evaluation else {}
    (folder / "gate.txt").write_text(f"{report}\n")
    (folder / "experiment.yaml").write_text(to_yaml(experiment))
    data = split.as_input()
    tags = {
        "AP": f"{scores.get('AP', float('nan')):.4f}",
        "split": data.name,
        "gate": _outcome(report),
        "method": experiment.method,
        "schema": experiment.keypoints.name,
        "checkpoint": named,
        "step": str(meta.step),
        "data.train": meta.provenance.get("data", "unknown"),
        "data.gate": data.fingerprint,
        **_backend_tags(folder / CHECKPOINT),
        **({"note": note} if (note := experiment.run.note) else {}),
        **_signature(report, "promoted_by"),
    }
    head = f"AP {tags['AP']} on {tags['split']}: {tags['method']}, {tags['schema']}, step {tags['step']}."
    head += f" **{note}**" if note else ""
    return Release(
        folder=folder,
        method=experiment.method,
        schema=experiment.keypoints,
        experiment=experiment.run.experiment,
        training_run=meta.provenance.get("run_id", ""),
        step=meta.step,
        settings=parameters(experiment),
        metrics=scores,
        split=data,
        tags=tags,
        description=_description(head, tags, report),
    )


def _backend_tags(checkpoint: Path) -> dict[str, str]:
    """What computes the network of a version: ``backend``, and the precision and SHA-256 of an exported network."""
    network = network_in(str(checkpoint))
    if not network:
        return {"backend": "torch"}
    facts = read_facts(network)
    return {
        "backend": backend_of(network) or "",
        "precision": facts.get("precision", "float32"),
        "network": facts["weights"],
    }


def shadow_tags(shadowing: Shadowing, report: GateReport) -> dict[str, str]:
    """Tags of a promoted challenger: the measurements of shadow traffic, the gate's result, and who promoted it.

    Returns:
        Tag name -> text; tags ``shadow.*`` hold the fields of ``shadowing`` that have a value.
    """
    values = {f"shadow.{key}": value for key, value in shadowing.model_dump().items() if value is not None}
    tags = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return tags | {"shadow.gate": _outcome(report), **_signature(report, "crowned_by")}


def promotion_summary(tags: Mapping[str, str], report: GateReport) -> str:
    """Markdown for the registry page of a challenger that was promoted with ``tags`` of :func:`shadow_tags`."""
    head = (
        f"Champion by {tags['crowned_by']}, after {tags['shadow.images']} live images beside "
        f"{tags.get('shadow.champion', 'nothing')}."
    )
    return _description(head, tags, report)


def _outcome(report: GateReport) -> str:
    return "failed" if report.failed else "passed"


def _signature(report: GateReport, name: str) -> dict[str, str]:
    """The tag ``name`` with who promotes now, and the tag ``forced`` if checks failed."""
    signature = signed()
    forced = {"forced": f"{', '.join(report.failed)} failed; forced by {signature}"} if report.failed else {}
    return {name: signature, **forced}


def _description(head: str, tags: Mapping[str, str], report: GateReport) -> str:
    """Markdown: the head, who forced the promotion (if forced), the checks, and the evaluation's table (if any)."""
    forced = f"\n\n**Forced**: {tags['forced']}." if "forced" in tags else ""
    table = f"\n\n```\n{report.evaluation}\n```" if report.evaluation else ""
    return f"{head}{forced}\n\n```\n{report}\n```{table}"
