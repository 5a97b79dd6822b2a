"""What a server is told: which models, how they run, what strangers may do. ``config.yaml`` holds it as ``args``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

TOKEN, TOKEN_FILE = "POSEFLEET_TOKEN", "POSEFLEET_TOKEN_FILE"
"""Environment variables of the server: the bearer token, or the file that holds it."""

CHALLENGER = ".challenger"
"""What the name of a model's challenger, which is a deployment of its own, ends with."""


class _Settings(BaseModel, extra="forbid", frozen=True):
    pass


class Batching(_Settings):
    """How images that come together are predicted together: those of one padded shape."""

    size: int = Field(8, ge=1, le=256)
    """Most images of a batch."""
    wait_ms: float = Field(0.0, ge=0, le=1000)
    """How long a batch that is not full waits for others while nothing is computed; others gather by themselves."""


class Shadow(_Settings):
    """A challenger that sees a share of the live images; nobody waits for it, and its poses are only compared."""

    source: str
    """Mostly ``models:/NAME@challenger``. While the registry has no such version, nothing is shadowed."""
    share: float = Field(0.1, gt=0, le=1)
    """Of the images."""
    deployment: dict[str, Any] = {}
    """Ray Serve's options of its replicas, see ``ServedModel.deployment``."""


class ServedModel(_Settings):
    """One served model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """In addresses: /v1/models/NAME/poses."""
    source: str
    """``models:/smpr@champion``, or the path or URI of a checkpoint or of a run's folder."""
    backend: Literal["torch", "onnxruntime"] = "torch"
    """What runs the network; onnxruntime is for replicas on CPUs, see docs/export.md."""
    bfloat16: bool | None = None
    """None: as it was trained and evaluated."""
    channels_last: bool | None = None
    """None: as it was trained."""
    compile: bool = False
    """torch.compile the network; the first image of every padded shape then waits for it."""
    batching: Batching = Batching()
    decode_threads: int = Field(2, ge=1, le=64)
    """Threads of a replica that decode and resize."""
    warm_up: tuple[tuple[int, int], ...] = ((640, 480), (480, 640))
    """(width, height) of images that are predicted before a replica is ready."""
    score_threshold: float = Field(0.1, ge=0, le=1)
    """Poses below are left out, unless a request says otherwise."""
    max_people: int = Field(100, ge=1, le=1000)
    """At most so many poses of an image, whatever a request says."""
    deployment: dict[str, Any] = {}
    """Ray Serve's options of its replicas: autoscaling_config, ray_actor_options (num_gpus: 0.5), ..."""
    shadow: Shadow | None = None


class Limits(_Settings):
    """What is refused, and how long anything may take."""

    body_bytes: int = Field(20 * 2**20, ge=1)
    image_pixels: int = Field(50_000_000, ge=1)
    """Width times height; looked up in the header, before anything is decoded."""
    images: int = Field(16, ge=1, le=1000)
    """Of a multipart request."""
    upload_s: float = Field(15.0, gt=0)
    """A request whose body is not there by then gets status 408."""
    deadline_s: float = Field(30.0, gt=0)
    """A request without an answer by then gets status 504, and its work is dropped."""
    reload_s: float = Field(120.0, gt=0)
    """How long a reload waits until every replica serves the new version."""


class Access(_Settings):
    """Who may do what. The token comes from the environment, see ``TOKEN`` and ``TOKEN_FILE``."""

    token_for: Literal["changes", "everything"] = "changes"
    """What needs the token: what changes the server (reload), or all but the page and health."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may call the API (CORS); none by default."""


class ServerSettings(_Settings):
    """A whole server."""

    models: tuple[ServedModel, ...] = Field(min_length=1)
    """The first one answers /v1/poses."""
    tracking: str = ""
    """MLflow registry; default: $MLFLOW_TRACKING_URI of the replicas, else ``mlflow.db`` under ``runs``."""
    limits: Limits = Limits()
    access: Access = Access()
    page: bool = True
    """Whether / is a page to try the models on."""
    ingress: dict[str, Any] = {}
    """Ray Serve's options of the replicas that speak HTTP."""
    direct: bool = False
    """Whether replicas of the first model speak HTTP themselves, in the place of an ingress: an image takes less time,
    but the requests of a replica that dies fail."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        names = [model.name for model in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several models are called {', '.join(twice)}; every name may come once")
        if taken := [name for name in names if name.endswith(CHALLENGER)]:
            raise ValueError(f"{', '.join(taken)}: names with {CHALLENGER} are those of challengers; see shadow")
        return models

    @model_validator(mode="after")
    def _direct_replicas_stay(self) -> "ServerSettings":
        if not self.direct:
            return self
        if self.ingress:
            raise ValueError("direct: true leaves no ingress whose options could be set; take `ingress` out")
        if may_be_zero(self.models[0]):
            raise ValueError("direct: true needs a replica that takes requests; min_replicas must be 1 or more")
        return self


def may_be_zero(model: ServedModel) -> bool:
    """Whether it may have no replica for a while."""
    scaling = model.deployment.get("autoscaling_config")
    return isinstance(scaling, Mapping) and scaling.get("min_replicas") == 0


def read_token() -> str:
    """The token that allows changes; empty: nobody may change anything.

    Raises:
        ValueError: The file that the environment names cannot be read, or holds nothing.
    """
    if path := os.environ.get(TOKEN_FILE):
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ValueError(f"${TOKEN_FILE}: {error}") from None
        if not token:
            raise ValueError(f"${TOKEN_FILE}: {path} is empty")
        return token
    return os.environ.get(TOKEN, "").strip()
