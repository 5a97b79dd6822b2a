"""Opens the data sets that an experiment names: a folder of shards, or several sources, each with its own keypoints."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import SampleSource
from posefleet.data.loading.union import SpreadSource, Supervision, UnionSource
from posefleet.data.schemas.names import same_names
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.union import places_in
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform, TrainTransform
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.sources import DataSource, check_schema, left_out, named

log = logging.getLogger(__name__)


def training_source(experiment: Experiment) -> SampleSource:
    """The samples that the experiment trains on, with its augmentation.

    Raises:
        DataError: Shards are missing, have no samples to train on, or do not fit the schema.
        SchemaError: A source has none of the schema's keypoints, or a keypoint of the schema is in no source.
    """
    data, schema = experiment.data, experiment.keypoints
    transform = TrainTransform(data.resize, data.augment, schema)

    def opened(path: str, own: KeypointSchema) -> ShardDataset:
        return ShardDataset(
            path, own, transform, seed=experiment.seed, window=data.window, labelled_only=data.labelled_only
        )

    if isinstance(data.train, str):
        return opened(data.train, schema)
    check_schema(schema, data.train)
    owned = [source.own_schema() for source in data.train]
    supervisions = [Supervision.of(schema, own) for own in owned]
    marked = not all(supervision.complete for supervision in supervisions)
    sources = []
    for source, own, supervision in zip(data.train, owned, supervisions, strict=True):
        if rest := left_out(schema, own):
            log.warning("source %s: schema %s leaves out %s", source.name, schema.name, ", ".join(rest))
        shards = opened(source.path, source.stored_schema())
        sources.append(SpreadSource(shards, supervision, transform, marked=marked))
    weights = [source.weight or len(shards) for source, shards in zip(data.train, sources, strict=True)]
    return UnionSource(sources, weights, transform, seed=experiment.seed)


@dataclass(frozen=True, slots=True)
class EvaluatedSource:
    """One of several sources that a model is evaluated on, by its own keypoints and by those of the model."""

    name: str
    path: str
    stored: KeypointSchema
    """The keypoints of the shards."""
    own: KeypointSchema
    """Those of them that the model predicts, with the source's sigmas."""
    rows: tuple[int, ...]
    """Indices of ``own`` among the keypoints of the shards."""
    places: tuple[int, ...]
    """Indices of ``own`` among the keypoints of the model."""
    schema: KeypointSchema
    """The keypoints of the model."""

    @classmethod
    def of(cls, source: DataSource, schema: KeypointSchema) -> "EvaluatedSource":
        """A source as a model of ``schema`` is evaluated on it.

        Raises:
            DataError: There are no shards.
            SchemaError: The model predicts none of its keypoints.
        """
        stored, own = source.stored_schema(), source.own_schema()
        places = places_in(own, schema)
        rows = tuple(row for row, place in enumerate(places) if place is not None)
        if not rows:
            check_schema(schema, (source,))  # raises
        return cls(
            name=source.name,
            path=source.path,
            stored=stored,
            own=own if len(rows) == len(own) else own.subset(rows),
            rows=rows,
            places=tuple(place for place in places if place is not None),
            schema=schema,
        )

    def open(self, view: EvalTransform) -> SpreadSource:
        """All its images in their stored order, passed through ``view``, with the keypoints of the model."""
        shards = ShardDataset(self.path, self.stored, view, labelled_only=False, seed=None)
        row_of = dict(zip(self.places, self.rows, strict=True))
        return SpreadSource(shards, Supervision(tuple(map(row_of.get, range(len(self.schema))))), view)

    def own_people(self, people: GroundTruth) -> GroundTruth:
        """People as stored, with the keypoints that the model predicts; COCO's counts stay if these are all."""
        if people.keypoints.shape[1] in (0, len(self.rows)):
            return people
        return _with_keypoints(people, people.keypoints[:, self.rows], people.visibility[:, self.rows])

    def own_poses(self, poses: Poses) -> Poses:
        """Poses of the model with the source's own keypoints."""
        index = list(self.places)
        return Poses(poses.keypoints[:, index], poses.keypoint_scores[:, index], poses.scores)


def spread_people(people: GroundTruth, supervision: Supervision) -> GroundTruth:
    """People of a source with the keypoints of another schema; those that the source does not label are unlabelled.

    Whom COCO ignores because of a count of 0 stays ignored, and so is whoever has none of these keypoints.
    """
    if people.keypoints.shape[1] == 0:
        return people
    rows = [place for place in supervision.places if place is not None]
    into = [index for index, place in enumerate(supervision.places) if place is not None]
    shape = (len(people.image), len(supervision.places))
    keypoints, visibility = np.zeros((*shape, 2)), np.zeros(shape)
    keypoints[:, into], visibility[:, into] = people.keypoints[:, rows], people.visibility[:, rows]
    return _with_keypoints(people, keypoints, visibility)


def _with_keypoints(people: GroundTruth, keypoints: np.ndarray, visibility: np.ndarray) -> GroundTruth:
    """The same people with some of their keypoints; a count of 0 stays 0."""
    counts = np.where(people.num_keypoints > 0, (visibility > 0).sum(1), 0)
    return replace(people, keypoints=keypoints, visibility=visibility, num_keypoints=counts)


def evaluated_sources(experiment: Experiment) -> list[EvaluatedSource]:
    """The sources to score one by one: those of a list in ``data.eval``; or its only one, if the model was trained on
    several sources and has other keypoints. None if ``data.eval`` has the keypoints of the model.

    Raises:
        DataError: There are no shards.
        SchemaError: The model predicts none of the keypoints of a source.
    """
    data, schema = experiment.data, experiment.keypoints
    if not isinstance(data.eval, str):
        return [EvaluatedSource.of(source, schema) for source in data.eval]
    if not data.eval or not data.several:
        return []
    source = named(data.eval)
    alike = same_names(source.stored_schema().keypoints, schema.keypoints)
    return [] if alike else [EvaluatedSource.of(source, schema)]
