"""Makes the doctor's report of the findings in a data set, with its statistics."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from posefleet.data.findings import Finding

_BAR = 30  # characters of the longest bar of a histogram


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers of images and people in a data set."""

    images: int = 0
    images_with_keypoint_people: int = 0
    people: int = 0
    """Everything annotated as a person: keypoint people, unlabelled people and crowds."""
    keypoint_people: int = 0
    people_by_keypoints: tuple[int, ...] = ()
    """Entry n: people, crowds aside, with n labelled keypoints."""
    labelled_by_keypoint: dict[str, int] = field(default_factory=dict)
    """For each keypoint, the people in whom it is labelled."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of :func:`posefleet.data.doctor.examine.examine`."""

    source: str
    """Annotation file."""
    schema: str
    """Name of the keypoint schema."""
    categories: str
    """Which categories of the file are read, and why; empty if the file cannot be read."""
    images_checked: bool
    """Whether the image files were read."""
    findings: tuple[Finding, ...]
    statistics: Statistics

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make training wrong or impossible."""
        return tuple(finding for finding in self.findings if finding.check.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that should be inspected."""
        return tuple(finding for finding in self.findings if finding.check.severity == "warning")

    def as_json(self) -> dict[str, Any]:
        """The report as a json object."""
        findings = [{**asdict(finding.check), **asdict(finding)} for finding in self.findings]
        return {**asdict(self), "findings": findings}

    def as_text(self) -> str:
        """The report for a terminal, a paragraph for each finding."""
        return "\n".join([*self._heading(), *self._paragraphs(), self._summary(), ""])

    def _heading(self) -> Iterable[str]:
        s = self.statistics
        yield f"{self.source}  ({self.schema})"
        if self.categories:
            yield f"  categories: {self.categories}"
        yield (
            f"  {s.images:,} images, {s.images_with_keypoint_people:,} of them with keypoint people; "
            f"{s.people:,} people, {s.keypoint_people:,} of them with labelled keypoints"
        )
        if s.keypoint_people:
            yield "  people by number of labelled keypoints"
            yield from _histogram({str(n): count for n, count in enumerate(s.people_by_keypoints)})
            yield "  people in whom a keypoint is labelled"
            yield from _histogram(s.labelled_by_keypoint)
        yield ""

    def _paragraphs(self) -> Iterable[str]:
        for finding in self.findings:
            check = finding.check
            yield f"  {check.severity.upper():8}{finding.code}: {finding.count:,}"
            yield f"          {check.meaning}"
            yield from (textwrap.indent(example, " " * 12) for example in finding.examples)
            if finding.examples and finding.more:
                yield f"            ... and {finding.more:,} more"
            if check.severity != "info":
                yield f"          {check.advice}"
            yield ""

    def _summary(self) -> str:
        images = "images read in full" if self.images_checked else "image files not read"
        kinds = [f"{n} kind{'' if n == 1 else 's'}" for n in (len(self.errors), len(self.warnings))]
        return f"  {kinds[0]} of error, {kinds[1]} of warning; {images}."


def write_reports(path: str, reports: Iterable[Report]) -> None:
    """Write reports as one json file."""
    with open(path, "w") as file:
        json.dump({"reports": [report.as_json() for report in reports]}, file, indent=2)
        file.write("\n")


def _histogram(counts: dict[str, int]) -> Iterable[str]:
    width, most = max(map(len, counts)), max(*counts.values(), 1)
    for name, count in counts.items():
        bar = "█" * round(_BAR * count / most)
        yield f"    {name:>{width}}  {count:>9,}  {bar}".rstrip()
