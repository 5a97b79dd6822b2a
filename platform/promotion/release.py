"""Writes the tags and the description that a registered version gets from what the gate measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from posefleet.platform.tracking.registry import signed

if TYPE_CHECKING:
    from posefleet.platform.promotion.gate import GateReport
    from posefleet.platform.promotion.shadow import Shadowing


def shadow_tags(seen: "Shadowing", report: "GateReport") -> dict[str, str]:
    """Tags of a challenger that is promoted: what shadow traffic measured, the gate's result, and who promoted it."""
    numbers = {f"shadow.{key}": value for key, value in seen.model_dump().items() if value is not None}
    tags = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in numbers.items()}
    tags |= {"shadow.gate": "failed" if report.failed else "passed", "crowned_by": signed()}
    if report.failed:
        tags["forced"] = f"{', '.join(report.failed)} failed; forced by {tags['crowned_by']}"
    return tags


def promotion_summary(tags: Mapping[str, str], report: "GateReport") -> str:
    """Markdown for the page of a challenger that was promoted."""
    return _description(
        f"Champion by {tags['crowned_by']}, after {tags['shadow.images']} live images beside "
        f"{tags.get('shadow.champion', 'nothing')}.",
        tags,
        report,
    )


def release_description(tags: Mapping[str, str], report: "GateReport") -> str:
    """Markdown for the page of a new version."""
    head = f"AP {tags['AP']} on {tags['split']}: {tags['method']}, {tags['schema']}, step {tags['step']}."
    return _description(head, tags, report)


def _description(head: str, tags: Mapping[str, str], report: "GateReport") -> str:
    """The head, then who forced the promotion, the checks, and the table of the evaluation, where there are any."""
    forced = f"\n\n**Forced**: {tags['forced']}." if "forced" in tags else ""
    table = f"\n\n```\n{report.evaluation}\n```" if report.evaluation else ""
    return f"{head}{forced}\n\n```\n{report}\n```{table}"
