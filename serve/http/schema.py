"""Queries and answers of the HTTP API as pydantic models; FastAPI generates the OpenAPI description from them."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field, model_validator

from posefleet.platform.prediction.tracker import MOST_NUMBER, MOST_TENTHS, MOST_TRACKS

NOTE = "What users of the model must know, such as what it was trained on; empty if its run said nothing."

Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PoseQuery(BaseModel, extra="forbid"):
    """Query parameters of a request for poses."""

    score_threshold: Threshold | None = Field(
        None, description="Poses with a lower score are left out. Default: the model's setting."
    )
    keypoint_threshold: Threshold = Field(0.0, description="Keypoints with a lower score are left out of their pose.")
    max_people: int | None = Field(None, ge=1, le=1000, description="Maximum number of poses per image, best first.")
    overlay: bool = Field(
        False, description="Answer with the image and its poses drawn on it, as JPEG; one image only."
    )


PoseQueryParameters = Annotated[PoseQuery, Query()]


Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
Tenths = Annotated[int, Field(ge=-MOST_TENTHS, le=MOST_TENTHS)]


class Track(BaseModel, extra="forbid", strict=True):
    """A person who is followed."""

    number: int | None = Field(ge=0, le=MOST_NUMBER, description="As `track` of poses; null: found once only.")
    seen: Seconds = Field(description="When it was seen last.")
    poses: Literal[1, 2] = Field(description="1 after its first pose, then 2.")
    velocity: list[Tenths] = Field(min_length=2, max_length=2, description="x and y, tenths of pixels a second.")
    keypoints: list[Tenths] = Field(
        min_length=2, max_length=10_000, description="x and y of each keypoint of the last pose, tenths of pixels."
    )


class TrackerState(BaseModel, extra="forbid", strict=True):
    """What the server must know of the frames before; clients send it back as it is."""

    seconds: Seconds = Field(description="Time of the frame before.")
    next: int = Field(ge=0, le=MOST_NUMBER, description="Number of the next new person.")
    tracks: list[Track] = Field(max_length=MOST_TRACKS)


class Tracking(BaseModel, extra="forbid", strict=True):
    """The field `tracking` of a form with one frame of a film."""

    seconds: Seconds = Field(description="Time of the frame, from any beginning; not before that of the frame before.")
    state: TrackerState | None = Field(None, description="From the answer to the frame before; null: the first frame.")

    @model_validator(mode="after")
    def _goes_on(self) -> "Tracking":
        if self.state and self.seconds < self.state.seconds:
            raise ValueError(
                f"seconds {self.seconds} must not be before {self.state.seconds}, the frame before; after a jump back "
                "begin again with the state null"
            )
        return self


class Keypoint(BaseModel):
    """One keypoint of a pose, in pixels of the upright image (EXIF orientation applied)."""

    name: str
    x: float
    y: float
    score: float = Field(
        description="See keypoint_scores of the model: it may be the score of the whole pose, repeated."
    )


class Pose(BaseModel):
    """The pose of one person."""

    score: float
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 around all keypoints, pixels.")
    keypoints: list[Keypoint]
    track: int | None = Field(
        None,
        description="Number of the person in the film, if `tracking` was sent; null while the pose belongs to nobody.",
    )


class ImagePoses(BaseModel):
    """The poses in one image, best first."""

    name: str | None = Field(description="File name in the form; null where the image was the body.")
    width: int
    height: int
    poses: list[Pose]


class ModelVersion(BaseModel):
    """The model version that predicted."""

    name: str
    method: str
    version: str | None = Field(description="Version of the registered model; null where a checkpoint is served.")
    keypoint_scores: str = Field(
        "not stated",
        description="What the scores of keypoints are. 'pose score, repeated': the network scores whole poses only, "
        "and each keypoint has the score of its pose.",
    )
    note: str = Field("", description=NOTE)


class Timings(BaseModel):
    """Milliseconds of each stage; for several images, those of the slowest."""

    decode: float
    queue: float = Field(description="Waiting for the batch to fill and for the batches before it.")
    predict: float = Field(description="Time of the image's batch in the network.")
    total: float


class Tracked(BaseModel):
    """What the next frame of a film needs."""

    state: TrackerState | None = Field(description="Send it with the next frame.")


class PosesAnswer(BaseModel):
    """The answer to a request for poses."""

    model: ModelVersion
    images: list[ImagePoses] = Field(description="In the order of the request.")
    timings: Timings
    tracking: Tracked | None = Field(None, description="If `tracking` was sent.")


class KeypointSet(BaseModel):
    """The keypoints of a model: all that is needed to draw and to score its poses."""

    name: str
    keypoints: list[str] = Field(description="In the order of the poses.")
    skeleton: list[tuple[str, str]] = Field(description="Lines between keypoints; may be empty.")
    flip_pairs: list[tuple[str, str]] = Field(description="Left and right keypoints that mirror each other.")
    sigmas: list[float] = Field(description="Deviation of annotators, in units of the square root of the area.")
    groups: dict[str, list[str]] = Field(description="Parts of the body; may be empty.")
    sources: dict[str, str] = Field(description="Where names, skeleton, pairs, sigmas and groups come from.")


class ModelInfo(BaseModel):
    """A served model. Requests without the token get no source, checkpoint, run, step and data."""

    name: str
    default: bool = Field(description="Whether it answers /v1/poses.")
    score_threshold: float
    problem: str | None = Field(None, description="Why no replica serves it; null if one does.")
    version: str | None = None
    method: str | None = None
    ap: float | None = Field(None, description="AP of its last evaluation; null if it was never evaluated.")
    note: str = Field("", description=NOTE)
    category: str | None = Field(None, description="What has the keypoints: person, dog; empty if nobody said.")
    keypoint_set: KeypointSet | None = None
    source: str | None = Field(None, description="Its source in the configuration: a registry address, or a path.")
    checkpoint: str | None = Field(None, description="Null until a replica has started.")
    run_id: str | None = None
    step: int | None = None
    data: str | None = Field(None, description="Fingerprint of its training data.")


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelInfo]


class Reloaded(BaseModel):
    """The outcome of a reload."""

    model: str
    before: str | None = Field(description="Version before the reload.")
    version: str | None = Field(description="Version after the reload.")
    replicas: int = Field(description="Number of replicas that serve it now.")


class Problem(BaseModel):
    """Why a request failed (RFC 9457, application/problem+json)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str = Field(description="The name that metrics count this failure under.")
