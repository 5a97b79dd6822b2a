"""Annotated images for scoring models in a promotion or a comparison."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import fsspec

from posefleet.data.coco.file_schema import read_file_schema
from posefleet.data.coco.source import Source, find_source, find_splits
from posefleet.data.doctor.examine import examine
from posefleet.data.loading.coco_dataset import FolderDataset
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import SampleSource, Transform
from posefleet.data.loading.union import SpreadSource, Supervision
from posefleet.data.schemas.names import same_names
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.union import places_in
from posefleet.data.shards.layout import read_manifest
from posefleet.data.shards.verify import check_shards
from posefleet.data.transforms import EvalTransform
from posefleet.platform.config.experiment import DataConfig
from posefleet.platform.tracking.runs import DataInput

USUAL_SPLIT = "val2017"
"""Split of a data set that is scored if none is named."""


class SplitOptions(Protocol):
    """Options by which a command names annotated images; see :meth:`Split.named`."""

    @property
    def source(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def images(self) -> str: ...
    @property
    def category(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Annotated images for scoring: a folder of shards, or COCO's own files."""

    shards: str = ""
    """Absolute path or URI of a folder of shards; empty if ``source`` is given."""
    source: Source | None = None
    """Data set in COCO's own files, read instead of shards."""
    category: tuple[str, ...] = ()
    """Categories of ``source`` that are read; empty: the only one that can be meant."""
    allow_errors: bool = False
    """Leave out the records of ``source`` that have errors."""
    allow_missing: bool = False
    """Leave out images of ``source`` whose files are missing; their people count as missed."""
    partial: bool = False
    """Whether the images may have some of a model's keypoints only; the others are then unlabelled."""

    @classmethod
    def named(
        cls,
        source: str,
        split: str,
        images: str,
        *,
        shards: str,
        category: Sequence[str] = (),
        allow_errors: bool = False,
        allow_missing: bool = False,
        partial: bool = False,
    ) -> Self:
        """The images that a command names: those of ``source`` if it is given, else those of ``shards``.

        Args:
            source: Data set in COCO's layout or that of a label tool, or an annotation file; empty: none.
            split: Split of ``source``; empty: ``USUAL_SPLIT`` if it has that, else the only one that it has.
            images: Image folder of ``source``; empty: at its usual place.
            shards: Absolute path or URI of a folder of shards; empty: none.
            category: Categories of ``source`` that are read; empty: the only one that can be meant.
            allow_errors: Leave out the records of ``source`` that have errors.
            allow_missing: Leave out images of ``source`` whose files are missing.
            partial: Whether the images may have some of a model's keypoints only.

        Raises:
            DataError: There are no such images.
            ValueError: Neither ``source`` nor ``shards`` is given, or an option of ``source`` without it.
        """
        if source:
            usual = USUAL_SPLIT if not split and USUAL_SPLIT in find_splits(source) else ""
            return cls(
                source=find_source(source, split or usual, images or None),
                category=tuple(category),
                allow_errors=allow_errors,
                allow_missing=allow_missing,
                partial=partial,
            )
        if category or allow_errors or allow_missing:
            raise ValueError(
                "--category, --allow-errors and --allow-missing go with --source; shards are read as they are"
            )
        if not shards:
            raise ValueError("no images to evaluate on; give --source PATH or --data.eval SHARDS")
        read_manifest(shards)  # fails on a wrong folder before anything is measured
        return cls(shards=shards, partial=partial)

    @classmethod
    def of_command(cls, options: "SplitOptions", data: DataConfig, **allowed: bool) -> Self:
        """The images that the options of a command name, else those of ``data.eval``; says on stderr what was found.

        Args:
            allowed: ``allow_errors`` and ``allow_missing``, see :meth:`named`.

        Raises:
            DataError, ValueError: As :meth:`named`.
        """
        split = cls.named(
            options.source,
            options.split,
            options.images,
            shards=data.one_eval,
            category=options.category,
            partial=data.several,
            **allowed,
        )
        sys.stderr.write(f"{split.source}\n" if split.source else "")
        return split

    def open(self, schema: KeypointSchema, transform: Transform) -> SampleSource:
        """The images in their stored order, each passed through ``transform``.

        Raises:
            DataError: The images or annotations cannot be used.
        """
        own = self._own_schema(schema)
        source: SampleSource
        if self.source:
            source = FolderDataset(
                self.source,
                own,
                transform,
                category=self.category,
                allow_errors=self.allow_errors,
                allow_missing=self.allow_missing,
            )
        else:
            source = ShardDataset(self.shards, own, transform, labelled_only=False, seed=None)
        return source if own is schema else SpreadSource(source, Supervision.of(schema, own), transform)

    def _own_schema(self, schema: KeypointSchema) -> KeypointSchema:
        """The keypoints of the images, if they are some of those of ``schema``; else ``schema``."""
        if not self.partial:
            return schema
        own = (
            read_file_schema(self.source.annotation_file, self.category)
            if self.source
            else read_manifest(self.shards).schema
        )
        alike = same_names(own.keypoints, schema.keypoints)
        return own if not alike and None not in places_in(own, schema) else schema

    def view(self, transform: EvalTransform) -> SampleSource:
        """The images as an evaluation reads them; see :meth:`open`."""
        return self.open(transform.schema, transform)

    def faults(self, schema: KeypointSchema) -> list[str]:
        """Errors in the images or annotations that make scores wrong, one text for each; empty if there are none."""
        if self.source:
            report = examine(self.source, self._own_schema(schema), category=self.category)
            return [f"{found.code}: {found.count}" for found in report.errors]
        return check_shards(self.shards)

    def __str__(self) -> str:
        if self.source:
            return self.source.annotation_file
        manifest = read_manifest(self.shards)
        return f"{manifest.split}, {manifest.samples:,} images"

    def as_input(self) -> DataInput:
        """Name, fingerprint and path of the images, for MLflow to record as a run's input."""
        if not self.source:
            manifest = read_manifest(self.shards)
            return DataInput(name=manifest.split, use="gate", fingerprint=manifest.fingerprint, source=self.shards)
        with fsspec.open(self.source.annotation_file, "rb") as file:
            fingerprint = hashlib.sha256(file.read()).hexdigest()
        name = self.source.split or self.source.annotation_file.rpartition("/")[2]
        return DataInput(name=name, use="gate", fingerprint=fingerprint, source=self.source.annotation_file)
