"""Lists the checks of the doctor, with severity and advice, and makes the report of their findings."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from posefleet.data.coco.annotations import AREA_OF_BOX

Severity = Literal["error", "warning", "info"]

MAX_EXAMPLES = 5
"""Examples that a finding keeps."""
_BAR = 30  # characters of the longest bar of a histogram


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of fault that the doctor checks for."""

    severity: Severity
    """error: training is wrong or impossible. warning: inspect it. info: nothing to do."""
    meaning: str
    """A sentence that says what is wrong."""
    advice: str
    """A sentence that says what to do."""


CHECKS: dict[str, Check] = {
    # The files.
    "unreadable_annotations": Check(
        "error", "The annotation file cannot be used.", "Download or export it again."
    ),
    "no_images": Check("error", "The annotation file lists no images.", "Export it again."),
    "no_keypoint_people": Check(
        "error", "Not one person has a labelled keypoint.", "Check that this is the keypoint file of the data set."
    ),
    "missing_image": Check(
        "error", "The image file is not there.", "Add the files; sharding skips and names them."
    ),
    "corrupt_image": Check(
        "error", "The image is damaged or truncated.", "Download it again; sharding skips and names it."
    ),
    "size_mismatch": Check(
        "error",
        "The image is not as large as the json says, so its annotations belong to another image.",
        "Put the original file back, or correct width and height; sharding skips and names it.",
    ),
    "exif_mismatch": Check(
        "error",
        "EXIF turns the image, but the json gives the size before turning: the annotations lie in the other frame.",
        "Apply or remove the EXIF orientation so that image and annotations agree; sharding skips and names it.",
    ),
    "exif_orientation": Check(
        "info",
        "EXIF turns or mirrors the image; the json agrees with the turned size.",
        "Nothing, if the annotations were drawn on the turned image, as viewers show it.",
    ),
    # Images in the json.
    "bad_image_record": Check(
        "error", "An image lacks an integer id, a file name or a positive size.", "Correct the record."
    ),
    "duplicate_image_id": Check("error", "Two images have the same id.", "Give every image its own id."),
    "duplicate_file_name": Check(
        "warning", "Two images are the same file.", "Merge them, or one image counts twice."
    ),
    "images_without_annotations": Check("info", "Images without a person.", "Nothing; they serve as background."),
    # Annotations.
    "bad_annotation_record": Check(
        "error", "An annotation lacks an integer id, an image_id or a list of numbers.", "Correct the record."
    ),
    "duplicate_annotation_id": Check(
        "error", "Two annotations have the same id; COCO's evaluation then drops one.", "Number them anew."
    ),
    "unknown_image": Check(
        "error", "An annotation belongs to no image of the file.", "Add the image or remove the annotation."
    ),
    "unknown_category": Check(
        "error", "An annotation has a category that the file does not list.", "Add the category or correct the id."
    ),
    "other_category": Check("info", "Annotations of things that are not people.", "Nothing; they are not read."),
    "not_finite": Check("error", "A box, area or keypoint is NaN or infinite.", "Correct or remove the annotation."),
    "bad_box": Check(
        "error", "The box of a keypoint person is not larger than 0.", "Correct it; boxes are x, y, width, height."
    ),
    "bad_area": Check(
        "error", "The area of a keypoint person is not larger than 0; OKS divides by it.", "Correct or remove the area."
    ),
    "bad_box_unlabelled": Check(
        "warning", "A person without keypoints has a box or area that is not larger than 0.", "Remove the annotation."
    ),
    "box_outside": Check("warning", "The box reaches out of the image.", "Check width, height and the box format."),
    "no_area": Check(
        "info", "Annotations without area (CrowdPose has none).", f"Nothing; {AREA_OF_BOX} of the box is taken."
    ),
    "crowd": Check("info", "Regions that cover a group.", "Nothing; losses and evaluation ignore them."),
    "unlabelled": Check(
        "info", "People without a labelled keypoint, crowds aside.", "Nothing; losses and evaluation ignore them."
    ),
    "no_segmentation": Check(
        "info",
        "Crowds and people without keypoints that have no segmentation.",
        "Nothing; losses ignore their boxes, except where people with keypoints are.",
    ),
    "bad_segmentation": Check(
        "warning",
        "The segmentation of a crowd or of a person without keypoints cannot be used.",
        "Correct it; sharding leaves it out, and losses ignore the box instead.",
    ),
    # Keypoints.
    "no_schema": Check(
        "error",
        "The file does not say which keypoints it has.",
        "Name the schema with --schema: a shipped one, or a YAML file. docs/schemas.md has the format.",
    ),
    "other_keypoints": Check(
        "error",
        "The file names other keypoints than the schema, or in another order.",
        "Choose the schema that fits (--schema auto reads it from the file), or correct the file.",
    ),
    "wrong_keypoint_count": Check(
        "error", "A person has another number of keypoints than the schema.", "Choose the schema that fits."
    ),
    "bad_visibility": Check("error", "A visibility is not 0, 1 or 2.", "Correct it: not labelled, hidden, visible."),
    "many_keypoints_outside": Check(
        "error",
        "Many labelled keypoints lie outside their image.",
        "Check that the coordinates are pixels (not 0 to 1) of these images (not resized ones).",
    ),
    "keypoint_outside": Check(
        "warning", "A labelled keypoint lies outside the image.", "Correct it or set its visibility to 0."
    ),
    "wrong_num_keypoints": Check(
        "warning", "num_keypoints is not the number of labelled keypoints.", "Correct it; here they are counted anew."
    ),
    "duplicate_person": Check(
        "warning", "Two people of one image have the same keypoints.", "Remove one; it counts twice."
    ),
    "left_right_swapped": Check(
        "warning", "Left and right seem swapped, by face, shoulders and hips.", "Inspect the examples."
    ),
    "constant_keypoint": Check(
        "warning", "A keypoint has the same coordinates in many people.", "Look for a placeholder in the export."
    ),
    "never_labelled": Check(
        "warning", "A keypoint is never labelled, so it cannot be learnt.", "Check the order of the keypoints."
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault that a data set has."""

    code: str
    """A key of ``CHECKS``."""
    count: int
    """How often it was found."""
    examples: tuple[str, ...]
    """The first ``MAX_EXAMPLES`` cases."""

    @property
    def check(self) -> Check:
        """The check that found it."""
        return CHECKS[self.code]


class Findings:
    """Counts the cases that the checks find, and keeps the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, code: str, example: str = "", count: int = 1) -> None:
        """Count one more case of ``code``, or ``count`` more."""
        assert code in CHECKS, code
        if count:
            self._counts[code] = self._counts.get(code, 0) + count
            examples = self._examples.setdefault(code, [])
            if example and len(examples) < MAX_EXAMPLES:
                examples.append(example)

    def __iter__(self) -> Iterator[Finding]:
        """Errors first, in the order of ``CHECKS``."""
        order: list[Severity] = ["error", "warning", "info"]
        codes = [code for severity in order for code in CHECKS if CHECKS[code].severity == severity]
        return (Finding(c, self._counts[c], tuple(self._examples[c])) for c in codes if c in self._counts)


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
            more = finding.count - len(finding.examples)
            if finding.examples and more:
                yield f"            ... and {more:,} more"
            if check.severity != "info":
                yield f"          {check.advice}"
            yield ""

    def _summary(self) -> str:
        images = "images read in full" if self.images_checked else "image files not read"
        return f"  {len(self.errors)} kinds of error, {len(self.warnings)} kinds of warning; {images}."


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
