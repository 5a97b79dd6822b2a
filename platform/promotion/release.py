"""Registers a candidate that passed the gate, with a description and tags of what was measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from posefleet.platform.tracking.registry import (
    signed,
)

if TYPE_CHECKING:
    from posefleet.platform.promotion.gate import GateReport
    from posefleet.platform.promotion.shadow import Shadowing


def shadow_tags(seen: "Shadowing", verdict: "GateReport") -> dict[str, str]:
    numbers = {f"shadow.{key}": value for key, value in seen.model_dump().items() if value is not None}
    tags = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in numbers.items()}
    tags |= {"shadow.gate": "failed" if verdict.failed else "passed", "crowned_by": signed()}
    if verdict.failed:
        tags["forced"] = f"{', '.join(verdict.failed)} failed; forced by {tags['crowned_by']}"
    return tags


def promotion_summary(tags: Mapping[str, str], verdict: "GateReport") -> str:
    forced = f"\n\n**Forced**: {tags['forced']}." if "forced" in tags else ""
    table = f"\n\n```\n{verdict.evaluation}\n```" if verdict.evaluation else ""
    return (
        f"Champion by {tags['crowned_by']}, after {tags['shadow.images']} live images beside "
        f"{tags.get('shadow.champion', 'nothing')}.{forced}\n\n```\n{verdict}\n```{table}"
    )


def release_description(tags: Mapping[str, str], verdict: "GateReport") -> str:
    """Markdown for the version's page."""
    head = f"AP {tags['AP']} on {tags['split']}: {tags['method']}, {tags['schema']}, step {tags['step']}."
    forced = f"\n\n**Forced**: {tags['forced']}." if "forced" in tags else ""
    table = f"\n\n```\n{verdict.evaluation}\n```" if verdict.evaluation else ""
    return f"{head}{forced}\n\n```\n{verdict}\n```{table}"
