"""What the HTTP interface takes and gives; FastAPI makes the OpenAPI pages of it."""

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PoseQuery(BaseModel, extra="forbid"):
    """Options of a request for poses."""

    score_threshold: Share | None = Field(None, description="Poses below are left out. Default: the model's setting.")
    keypoint_threshold: Share = Field(0.0, description="Keypoints below are left out of their pose.")
    max_people: int | None = Field(None, ge=1, le=1000, description="At most so many poses of an image, the best.")
    overlay: bool = Field(False, description="Answer with the picture, poses drawn on it, as JPEG; one image only.")


Options = Annotated[PoseQuery, Query()]


class Keypoint(BaseModel):
    """A keypoint of a pose, in pixels of the picture as a person sees it."""

    name: str
    x: float
    y: float
    score: float


class Pose(BaseModel):
    """A person found."""

    score: float
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 round all keypoints, pixels.")
    keypoints: list[Keypoint]


class ImagePoses(BaseModel):
    """The people of an image, best first."""

    name: str | None = Field(description="File name of its part; null where the image was the body.")
    width: int
    height: int
    poses: list[Pose]


class ModelVersion(BaseModel):
    """What answered."""

    name: str
    method: str
    version: str | None = Field(description="Of the registered model; null where a checkpoint is served.")


class Timings(BaseModel):
    """Milliseconds; of several images, the longest."""

    decode: float
    queue: float = Field(description="Waiting for the batch to fill and for the batches before it.")
    predict: float = Field(description="Of the batch that the image was in.")
    total: float


class PosesAnswer(BaseModel):
    """The answer to a request for poses."""

    model: ModelVersion
    images: list[ImagePoses] = Field(description="In the order of the request.")
    timings: Timings


class KeypointSet(BaseModel):
    """The keypoints of a model, for drawing."""

    name: str
    keypoints: list[str]
    skeleton: list[tuple[str, str]]


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    default: bool = Field(description="Whether it answers /v1/poses.")
    source: str = Field(description="What the configuration says: an address in the registry, or a path.")
    score_threshold: float
    version: str | None = None
    checkpoint: str | None = Field(None, description="Null while no replica has started.")
    method: str | None = None
    run_id: str | None = None
    step: int | None = None
    ap: float | None = Field(None, description="Of its last evaluation; null where there was none.")
    data: str | None = Field(None, description="Fingerprint of the data that it was trained on.")
    keypoint_set: KeypointSet | None = None


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelInfo]


class Reloaded(BaseModel):
    """What a reload did."""

    model: str
    before: str | None
    version: str | None
    replicas: int = Field(description="How many serve it now.")


class ShadowSummary(BaseModel):
    """How far champion and challenger agree on live images, since the two are what they are."""

    images: int
    champion: str | None = None
    challenger: str | None = None
    people: int | None = Field(None, description="Poses of the champion.")
    mean_oks: float | None = Field(None, description="Between the two poses of people whom both found.")
    only_champion: int | None = Field(None, description="People whom the challenger missed.")
    only_challenger: int | None = Field(None, description="People whom the champion missed.")
    champion_ms: float | None = Field(None, description="Mean for an image: of its batch, divided by the images in it.")
    challenger_ms: float | None = None


class Problem(BaseModel):
    """Why a request failed (RFC 9457, application/problem+json)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str = Field(description="The word that metrics count it under.")
