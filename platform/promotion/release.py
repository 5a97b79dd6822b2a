"""Writes the tags and the description of a registered version from the gate's measurements."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from posefleet.platform.tracking.registry import signed

if TYPE_CHECKING:
    from posefleet.platform.promotion.gate import GateReport
    from posefleet.platform.promotion.shadow import Shadowing


def shadow_tags(shadowing: "Shadowing", report: "GateReport") -> dict[str, str]:
    """Tags of a promoted challenger: the measurements of shadow traffic, the gate's result, and who promoted it.

    Returns:
        Tag name -> text; tags ``shadow.*`` hold the fields of ``shadowing`` that have a value.
    """
    values = {f"shadow.{key}": value for key, value in shadowing.model_dump().items() if value is not None}
    tags = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    tags |= {"shadow.gate": "failed" if report.failed else "passed", "crowned_by": signed()}
    if report.failed:
        tags["forced"] = f"{', '.join(report.failed)} failed; forced by {tags['crowned_by']}"
    return tags


def promotion_summary(tags: Mapping[str, str], report: "GateReport") -> str:
    """Markdown for the registry page of a challenger that was promoted with ``tags`` of :func:`shadow_tags`."""
    return _description(
        f"Champion by {tags['crowned_by']}, after {tags['shadow.images']} live images beside "
        f"{tags.get('shadow.champion', 'nothing')}.",
        tags,
        report,
    )


def release_description(tags: Mapping[str, str], report: "GateReport") -> str:
    """Markdown for the registry page of a new version: AP, method, schema, step, checks and evaluation."""
    head = f"AP {tags['AP']} on {tags['split']}: {tags['method']}, {tags['schema']}, step {tags['step']}."
    return _description(head, tags, report)


def _description(head: str, tags: Mapping[str, str], report: "GateReport") -> str:
    """Markdown: the head, who forced the promotion (if forced), the checks, and the evaluation's table (if any)."""
    forced = f"\n\n**Forced**: {tags['forced']}." if "forced" in tags else ""
    table = f"\n\n```\n{report.evaluation}\n```" if report.evaluation else ""
    return f"{head}{forced}\n\n```\n{report}\n```{table}"
