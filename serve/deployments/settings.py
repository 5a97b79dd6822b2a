"""Settings of a server: which models it serves, how they run, what clients may do; ``config.yaml`` sets them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from posefleet.data.image_limits import LIMITS, ImageLimits
from posefleet.platform.config.experiment import Precision

TOKEN, TOKEN_FILE = "POSEFLEET_TOKEN", "POSEFLEET_TOKEN_FILE"
"""Environment variables of the server: the bearer token, or the path of the file that holds it."""

CHALLENGER = ".challenger"
"""Suffix of the deployment that runs a model's challenger: ``smpr.challenger``."""


class _Settings(BaseModel, extra="forbid", frozen=True):
    pass


class Batching(_Settings):
    """How images are grouped into batches. Only images of one padded shape share a batch."""

    size: int = Field(8, ge=1, le=256)
    """Maximum number of images in a batch. Larger: more images per second under load, more memory, and each image
    waits for the whole batch."""
    wait_ms: float = Field(0.0, ge=0, le=1000)
    """How long a batch that is not full waits for more images while nothing is computed, milliseconds. Larger: fuller
    batches at low load, but a lone image waits that long. Images that arrive during a batch join the next one
    anyway."""


class Shadow(_Settings):
    """A challenger that also predicts a share of the live images. Clients never wait for it or see its poses."""

    source: str
    """As ``ServedModel.source``, usually ``models:/NAME@challenger``. While the registry has no such version,
    nothing is compared."""
    share: float = Field(0.1, gt=0, le=1)
    """Share of the live images that the challenger predicts, too. Larger: enough images are compared sooner, at the
    cost of that much more compute."""
    deployment: dict[str, Any] = {}
    """Ray Serve options of the challenger's replicas; see ``ServedModel.deployment``."""


class ServedModel(_Settings):
    """One served model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Name of the model in URLs: /v1/models/NAME/poses."""
    source: str
    """``models:/smpr@champion``, or the path or URI of a checkpoint, of a run folder or of an exported file."""
    backend: Literal["torch", "onnxruntime", "openvino", "tensorrt"] | None = None
    """What runs the network. onnxruntime and openvino are for replicas on CPUs, tensorrt for those on GPUs; see
    docs/export.md. None: what the version was promoted with, else torch."""
    precision: Precision | None = None
    """Precision of the network. On GPUs bfloat16 and float16 are faster and need less memory; GPUs without bfloat16
    (T4, V100) need float16. None: as it was trained and evaluated."""
    channels_last: bool | None = None
    """Whether tensors are stored with channels last. None: as in training."""
    compile: bool = False
    """Whether to run torch.compile on the network. Later batches are faster, but the first batch of every padded shape
    waits for the compilation; list expected sizes under ``warm_up``."""
    batching: Batching = Batching()
    decode_threads: int = Field(2, ge=1, le=64)
    """Threads of a replica that decode and resize images. More keep a fast network busy, but take CPU time from a
    network that runs on the CPU."""
    warm_up: tuple[tuple[int, int], ...] = ((640, 480), (480, 640))
    """(width, height) of gray images that a replica predicts before it is ready, so that no client waits for the first
    run of a shape. Each one makes a start or a swap longer."""
    score_threshold: float = Field(0.1, ge=0, le=1)
    """Poses with a lower score are left out, unless the request sets its own threshold."""
    max_people: int = Field(100, ge=1, le=1000)
    """Maximum number of poses per image, best first. A request may ask for fewer, not for more."""
    deployment: dict[str, Any] = {}
    """Ray Serve options of the replicas: autoscaling_config, ray_actor_options (num_gpus: 0.5), ..."""
    shadow: Shadow | None = None


class Limits(_Settings):
    """What the server refuses, and how long a request may take."""

    body_bytes: int = Field(20 * 2**20, ge=1)
    """Maximum size of a request body, bytes. An ingress holds that much memory for each upload."""
    image_pixels: int = Field(50_000_000, ge=1)
    """Maximum width times height of an image. It is read from the header, before anything is decoded."""
    request_pixels: int | None = Field(None, ge=1)
    """Maximum width times height of all images of a request together, read from their headers; more gets 413. A pixel
    takes 3 bytes once it is decoded, and up to 12 while it is. None: twice ``image_pixels``."""
    replica_pixels: int | None = Field(None, ge=1)
    """Maximum width times height of all images that a replica holds at a time; a further one gets 503 with Retry-After
    before it is decoded. Lower it for replicas with little memory. None: four times ``image_pixels``."""
    decode_processes: int = Field(1, ge=1, le=64)
    """Processes of a replica that decode unusual images: animated PNG and WebP, JPEG of more than 20 scans. They are
    started when the first one comes, take 90 MB each, and are killed when an image overruns."""
    decode_cpu_s: float = Field(5.0, gt=0)
    """CPU seconds that decoding an unusual image may take, rounded up; then its process is killed. An ordinary image of
    50 megapixels takes 0.3 to 1 s."""
    structure: ImageLimits = LIMITS
    """What the structure of an image file may ask for: scans, texts, directories; see ``data/image_limits.py``."""
    images: int = Field(16, ge=1, le=1000)
    """Maximum number of images in a multipart request."""
    upload_s: float = Field(15.0, gt=0)
    """A request whose body has not arrived after this many seconds gets status 408."""
    deadline_s: float = Field(30.0, gt=0)
    """A request without an answer after this many seconds gets status 504, and its work is dropped."""
    reload_s: float = Field(120.0, gt=0)
    """How long a reload waits until every replica serves the new version, seconds; then all go back to the old one."""

    @model_validator(mode="after")
    def _an_image_has_room(self) -> "Limits":
        for name in ("request_pixels", "replica_pixels"):
            if (most := getattr(self, name)) is not None and most < self.image_pixels:
                raise ValueError(
                    f"{name} {most} must be at least image_pixels ({self.image_pixels}), or no image of that size fits"
                )
        return self


class Access(_Settings):
    """Who may do what. The token comes from the environment; see ``TOKEN`` and ``TOKEN_FILE``."""

    token_for: Literal["changes", "everything"] = "changes"
    """Which requests need the token: changes: only those that change the server (reload); everything: all of the API
    (the page itself, /docs and health checks stay open)."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may call the API (CORS); none by default."""


class ServerSettings(_Settings):
    """All settings of a server."""

    models: tuple[ServedModel, ...] = Field(min_length=1)
    """The first one is the default: it answers /v1/poses."""
    tracking: str = ""
    """URI of the MLflow registry. Empty: $MLFLOW_TRACKING_URI of the replicas, else ``mlflow.db`` under ``runs``."""
    limits: Limits = Limits()
    access: Access = Access()
    page: bool = True
    """Whether / is a page to try the models on."""
    ingress: dict[str, Any] = {}
    """Ray Serve options of the ingress, the replicas that handle HTTP requests."""
    direct: bool = False
    """Whether the replicas of the first model handle HTTP requests themselves, without an ingress. An image takes less
    time, but the requests of a replica that dies fail."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [model.name for model in models]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several models are called {', '.join(repeated)}; give each model its own name")
        if reserved := [name for name in names if name.endswith(CHALLENGER)]:
            raise ValueError(
                f"{', '.join(reserved)}: names that end with {CHALLENGER} belong to challengers; use `shadow`"
            )
        return models

    @model_validator(mode="after")
    def _direct_replicas_stay(self) -> "ServerSettings":
        if not self.direct:
            return self
        if self.ingress:
            raise ValueError("direct: true runs no ingress, so `ingress` has no effect; remove one of the two")
        if may_scale_to_zero(self.models[0]):
            raise ValueError(
                "direct: true needs a replica to accept requests, but min_replicas is 0; set it to 1 or more"
            )
        return self


def may_scale_to_zero(model: ServedModel) -> bool:
    """Whether autoscaling may leave the model without a replica for a while."""
    scaling = model.deployment.get("autoscaling_config")
    return isinstance(scaling, Mapping) and scaling.get("min_replicas") == 0


def read_token() -> str:
    """The token that allows changes. Empty: no token is set, and nobody may change anything.

    Raises:
        ValueError: The file that $POSEFLEET_TOKEN_FILE names cannot be read, or is empty.
    """
    if path := os.environ.get(TOKEN_FILE):
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ValueError(f"${TOKEN_FILE}: {error}") from None
        if not token:
            raise ValueError(f"${TOKEN_FILE}: {path} is empty; write the token into it")
        return token
    return os.environ.get(TOKEN, "").strip()
