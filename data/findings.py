"""Lists everything that can be wrong with a data set, with severity and advice; counts and keeps what is found.

Every reader of annotations uses this one list: the doctor reports its findings, sharding, evaluation and training
refuse a file that has errors, or leave out the records that have them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
Allowed = Literal["", "annotation", "image", "kept"]

MAX_EXAMPLES = 5
"""Examples that a finding keeps."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of fault that is checked for."""

    severity: Severity
    """error: training is wrong or impossible. warning: inspect it. info: nothing to do."""
    meaning: str
    """A sentence that says what is wrong."""
    advice: str
    """A sentence that says what to do."""
    allowed: Allowed = ""
    """What ``--allow-errors`` does with an error. annotation, image: leaves out the record that has it. kept: goes on
    with all records. Empty: the file stays refused."""


CHECKS: dict[str, Check] = {
    # The files.
    "unreadable_annotations": Check(
        "error", "The annotation file cannot be used.", "Download or export it again."
    ),
    "no_images": Check("error", "The annotation file lists no images.", "Export it again."),
    "no_keypoint_people": Check(
        "error", "Not one person has a labelled keypoint.", "Check that this is the keypoint file of the data set."
    ),
    "unclear_category": Check(
        "error", "It is not clear which categories are meant.", "Name them with --category NAME [NAME ...]."
    ),
    "bad_category_record": Check(
        "error",
        "A category lacks an integer id of its own, or has a name that is no text.",
        "Correct the record.",
        "kept",
    ),
    "missing_image": Check(
        "error", "The image file is not there.", "Add the files; sharding skips and names them.", "image"
    ),
    "image_outside_folder": Check(
        "error",
        "The file name of an image leads out of the image folder, so it is not read.",
        "Correct the file names, or name the folder above them with --images; sharding skips and names them.",
        "image",
    ),
    "unreadable_image": Check(
        "error",
        "The image file is there and cannot be read.",
        "Give permission to read it; sharding skips and names it.",
        "image",
    ),
    "corrupt_image": Check(
        "error", "The image is damaged or truncated.", "Download it again; sharding skips and names it.", "image"
    ),
    "costly_image": Check(
        "error",
        "The file is built so that decoding it takes far more time or memory than its pixels.",
        "Save it again with an ordinary encoder, if you trust it; sharding skips and names it.",
        "image",
    ),
    "size_mismatch": Check(
        "error",
        "The image is not as large as the json says, so its annotations belong to another image.",
        "Put the original file back, or correct width and height; sharding skips and names it.",
        "image",
    ),
    "exif_mismatch": Check(
        "error",
        "EXIF turns the image, but the json gives the size before turning: the annotations lie in the other frame.",
        "Apply or remove the EXIF orientation so that image and annotations agree; sharding skips and names it.",
        "image",
    ),
    "exif_orientation": Check(
        "info",
        "EXIF turns or mirrors the image; the json agrees with the turned size.",
        "Nothing, if the annotations were drawn on the turned image, as viewers show it.",
    ),
    "unlisted_image": Check(
        "info",
        "An image of the folder is not in the annotation file.",
        "Nothing, if it belongs to another split or was not labelled; it is not read.",
    ),
    "other_file": Check(
        "info",
        "A file of the image folder is no image, by its name.",
        "Nothing; it is not read. Convert it if it is an image of another format.",
    ),
    # Images in the json.
    "bad_image_record": Check(
        "error",
        "A field of an image is missing or has a value of another type: id and a positive width and height are "
        "integers, file_name is a text.",
        "Correct the record.",
        "image",
    ),
    "duplicate_image_id": Check(
        "error",
        "Several images have the same id, so it is not known whose annotations are whose.",
        "Give every image its own id.",
        "image",
    ),
    "duplicate_file_name": Check(
        "warning", "Two images are the same file.", "Merge them, or one image counts twice."
    ),
    "images_without_annotations": Check("info", "Images without a person.", "Nothing; they serve as background."),
    # Annotations.
    "bad_annotation_record": Check(
        "error",
        "A field of an annotation is missing or has a value of another type.",
        "Correct the record, or the program that writes it.",
        "annotation",
    ),
    "duplicate_annotation_id": Check(
        "error", "Two annotations have the same id; COCO's evaluation then drops one.", "Number them anew.",
        "annotation",
    ),
    "unknown_image": Check(
        "error", "An annotation belongs to no image of the file.", "Add the image or remove the annotation.",
        "annotation",
    ),
    "unknown_category": Check(
        "error", "An annotation has a category that the file does not list.", "Add the category or correct the id.",
        "annotation",
    ),
    "other_category": Check(
        "info", "Annotations of categories that are not read.", "Nothing, or name more categories with --category."
    ),
    "people_not_read": Check(
        "warning",
        "The category person has annotations that are not read, because another category is the one with keypoints.",
        "Nothing, if they are the same people. Else add the category to --category: people without keypoints are "
        "ignored by losses and evaluation, and are not taken for background.",
    ),
    "whole_body_parts": Check(
        "info",
        "Annotations also have keypoints of feet, face and hands, as COCO-WholeBody's files do; they are not read.",
        "Nothing, or read them with --schema coco_wholebody133.",
    ),
    "not_finite": Check(
        "error",
        "A number of a box, an area or a keypoint, labelled or not, is NaN, infinite or far beyond any image.",
        "Correct or remove the annotation.",
        "annotation",
    ),
    "bad_box": Check(
        "error",
        "The box of a keypoint person is not larger than 0.",
        "Correct it; boxes are x, y, width, height.",
        "annotation",
    ),
    "bad_area": Check(
        "error",
        "The area of a keypoint person is not larger than 0; OKS divides by it.",
        "Correct or remove the area.",
        "annotation",
    ),
    "bad_box_unlabelled": Check(
        "warning", "A person without keypoints has a box or area that is not larger than 0.", "Remove the annotation."
    ),
    "box_outside": Check("warning", "The box reaches out of the image.", "Check width, height and the box format."),
    "many_boxes_outside": Check(
        "error",
        "Many boxes reach out of their images.",
        "Check that boxes are x, y, width, height in pixels (not two corners) of these images (not resized ones).",
        "kept",
    ),
    "box_without_keypoints": Check(
        "warning", "The box of a person contains none of the labelled keypoints.", "Correct the box or the keypoints."
    ),
    "many_boxes_without_keypoints": Check(
        "error",
        "The boxes of many people contain none of their labelled keypoints.",
        "Check that boxes and keypoints are pixels of the same image, and that boxes are x, y, width, height.",
        "kept",
    ),
    "implausible_area": Check(
        "warning",
        "The area of a person is larger than the image, or smaller than a thousandth of the box.",
        "Correct the area; it is in square pixels.",
    ),
    "many_implausible_areas": Check(
        "error",
        "The areas of many people are larger than the image, or smaller than a thousandth of the box.",
        "Check that areas are square pixels (not shares of the image); OKS is measured with them.",
        "kept",
    ),
    "no_area": Check(
        "info", "Annotations without area (CrowdPose has none).", "Nothing; a fixed share of the box is taken."
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
        "A segmentation is neither polygons nor run lengths, or that of a crowd or a person without keypoints cannot "
        "be used.",
        "Correct it. Those of crowds and people without keypoints are left out, and losses ignore the box instead.",
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
        "error",
        "A person has another number of keypoints than the schema.",
        "Correct the record; if all have another number, choose the schema that fits.",
        "annotation",
    ),
    "bad_visibility": Check(
        "error", "A visibility is not 0, 1 or 2.", "Correct it: not labelled, hidden, visible.", "annotation"
    ),
    "normalised_coordinates": Check(
        "error",
        "All labelled keypoints of people lie in the first pixel of their images: these are coordinates from 0 to 1.",
        "Multiply x by the width and y by the height of the image; coordinates are pixels.",
        "annotation",
    ),
    "keypoints_in_one_pixel": Check(
        "warning",
        "All labelled keypoints of a person lie in the first pixel of the image.",
        "Correct the annotation; coordinates are pixels, not 0 to 1.",
    ),
    "many_keypoints_outside": Check(
        "error",
        "Many labelled keypoints lie outside their image.",
        "Check that the coordinates are pixels of these images (not of resized ones).",
        "kept",
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
    more: int = 0
    """Cases that the examples do not tell of."""

    @property
    def check(self) -> Check:
        """The check that found it."""
        return CHECKS[self.code]

    def __str__(self) -> str:
        return f"{self.code} ({self.count:,}){': ' if self.examples else ''}{'; '.join(self.examples)}"


class Findings:
    """Counts the cases that the checks find, and keeps the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._told: dict[str, int] = {}

    def add(self, code: str, example: str = "", count: int = 1) -> None:
        """Count one more case of ``code``, or ``count`` more that ``example`` tells of."""
        assert code in CHECKS, code
        if count:
            self._counts[code] = self._counts.get(code, 0) + count
            examples = self._examples.setdefault(code, [])
            if example and len(examples) < MAX_EXAMPLES:
                examples.append(example)
                self._told[code] = self._told.get(code, 0) + count

    def __iter__(self) -> Iterator[Finding]:
        """Errors first, in the order of ``CHECKS``."""
        order: list[Severity] = ["error", "warning", "info"]
        codes = [code for severity in order for code in CHECKS if CHECKS[code].severity == severity]
        for code in codes:
            if count := self._counts.get(code):
                yield Finding(code, count, tuple(self._examples[code]), count - self._told.get(code, 0))

    @property
    def errors(self) -> list[Finding]:
        """The findings that make training wrong or impossible."""
        return [finding for finding in self if finding.check.severity == "error"]
