"""Writes a review into a folder: the page, the list of suspects, and tasks for label tools."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from posefleet.data.coco.records import Record
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.review.suspects import KINDS, Suspect, find_suspects
from posefleet.data.review.tasks import coco_tasks, label_studio_config, label_studio_tasks, to_json
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.platform.review import page
from posefleet.platform.visualization.tables import table

LOCAL_FILES = "/data/local-files/?d="
"""Label Studio's address of files of its own disk."""


def write_review(
    parts: Sequence[str], poses: Mapping[int, Poses], schema: KeypointSchema, out: Path, *, show: int, about: str
) -> str:
    """Find the suspects and write ``review.html``, ``suspects.json``, ``cvat/`` and ``label-studio/``.

    Args:
        parts: Folders of shards, with all images.
        poses: Predictions by image id.
        schema: The keypoints.
        out: Folder of the files; made if it does not exist.
        show: Number of suspects on the page and in the tasks.
        about: A sentence for the page on where the predictions come from.

    Returns:
        A table of the kinds and the paths of the files, for the terminal.

    Raises:
        DataError: The shards cannot be read.
    """
    view = EvalTransform(Resize(), schema)
    opened = [ShardDataset(part, schema, view, labelled_only=False, seed=None) for part in parts]
    places = {r["image_id"]: (part, row, r) for part in opened for row, r in enumerate(part.records())}
    records = [record for _, _, record in places.values()]
    suspects = find_suspects(records, poses, schema)
    first = suspects[:show]
    console = Console(stderr=True)
    drawn = page.draw(first, places, poses, schema)
    shown = list(track(drawn, "pictures", total=len(first), console=console, disable=not sys.stderr.isatty()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "suspects.json").write_bytes(to_json([asdict(suspect) for suspect in suspects]))
    (out / "review.html").write_text(page.render(shown, suspects, images=len(records), about=about))
    _write_tasks(records, first, schema, out)
    return _summary(suspects, out)


def _write_tasks(records: Sequence[Record], suspects: Sequence[Suspect], schema: KeypointSchema, out: Path) -> None:
    of_image: dict[int, list[Suspect]] = {}
    for suspect in suspects:
        of_image.setdefault(suspect.image_id, []).append(suspect)
    by_id = {record["image_id"]: record for record in records}
    chosen = [by_id[image_id] for image_id in of_image]  # the most doubtful image first
    coco = coco_tasks(chosen, of_image, schema, schema.name)
    studio = label_studio_tasks(chosen, of_image, schema, LOCAL_FILES)
    files = {
        "cvat/annotations/person_keypoints_default.json": to_json(coco),
        "cvat/images.txt": "".join(f"{record['file_name']}\n" for record in chosen).encode(),
        "label-studio/tasks.json": to_json(studio),
        "label-studio/interface.xml": label_studio_config(schema).encode(),
    }
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def _summary(suspects: Sequence[Suspect], out: Path) -> str:
    counts = Counter(suspect.kind for suspect in suspects)
    text = table(
        ["kind", "suspects", "what it means"], [[k, f"{counts[k]:,}", meaning] for k, meaning in KINDS.items()]
    )
    files = {"page": "review.html", "list": "suspects.json", "CVAT": "cvat/", "Label Studio": "label-studio/"}
    return f"{text}\n\n" + "".join(f"  {kind:12}  {out / name}\n" for kind, name in files.items())
