"""The experiment: everything that determines a run, typed, from YAML and the command line.

A YAML file gives sections and fields by name; ``--section.field value`` on the command line wins over it. Unknown
keys and wrong types are errors that name the key and the valid ones.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from posefleet.data.keypoints import KeypointSchema, load_schema
from posefleet.data.transforms import Augment, Resize
from posefleet.platform.runtime.paths import STORAGE

GRAMMAR = "write steps=5, or steps=5,wait=10,ranks=all"


WAIT = 5


@dataclass(frozen=True, slots=True)
class Profile:
    """Which steps of which ranks are looked at."""

    steps: int
    wait: int = WAIT
    """Steps before, which are slower than the others."""
    everywhere: bool = False
    """On all ranks, not only on rank 0."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what a command line says.

        Raises:
            ValueError: It says something else.
        """
        given: dict[str, str] = {}
        for part in text.split(","):
            name, found, value = part.strip().partition("=")
            if not found or name not in ("steps", "wait", "ranks"):
                raise ValueError(f"profile {text!r}: {part.strip()!r} is not steps=, wait= or ranks=; {GRAMMAR}")
            if name in given:
                raise ValueError(f"profile {text!r}: {name} is given twice; {GRAMMAR}")
            given[name] = value
        if "steps" not in given:
            raise ValueError(f"profile {text!r}: steps is missing; {GRAMMAR}")
        given = {"wait": str(WAIT), "ranks": "0", **given}
        for name, least in (("steps", 1), ("wait", 0)):
            value = given[name]
            if not value.isdecimal() or int(value) < least:
                raise ValueError(f"profile {text!r}: {name} must be a number from {least} on, not {value!r}; {GRAMMAR}")
        if given["ranks"] not in ("0", "all"):
            raise ValueError(f"profile {text!r}: ranks must be 0 or all, not {given['ranks']!r}; {GRAMMAR}")
        return cls(int(given["steps"]), int(given["wait"]), given["ranks"] == "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with momentum, adamw is AdamW, whose rates are about 10 to 100 times lower."""
    lr: float = 0.02
    """Learning rate after warm-up, for ``optim.lr_batch`` images a step. Higher learns faster until the loss
    diverges."""
    lr_batch: int = 0
    """Images a step that ``optim.lr`` was chosen for; the rate scales linearly with the real number, so that more
    workers or larger batches need no other ``optim.lr``. 0: do not scale."""
    backbone_lr: float = 1.0
    """Factor on the rate of parameters under ``backbone``."""
    bias_lr: float = 1.0
    """Factor on the rate of biases."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW."""
    weight_decay: float = 1e-4
    """L2 (SGD) or decoupled (AdamW) decay of weights; biases and norms never decay. Higher fits the training images
    less closely."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the rate falls over the run."""
    milestones: tuple[float, ...] = ()
    """Epochs after which ``step`` multiplies the rate by ``gamma``."""
    gamma: float = 0.1
    """Factor of ``step``."""
    warmup_steps: int = 500
    """Optimiser steps of warm-up."""
    warmup_factor: float = 1 / 3
    """Share of the rate that warm-up starts with."""
    warmup: Literal["constant", "linear"] = "constant"
    """Stay at ``warmup_factor``, or rise from it."""
    clip_norm: float = 35.0
    """Largest norm of all gradients together. 0: do not clip."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr {self.lr} must be positive")
        if self.schedule != "step" and self.milestones:
            raise ValueError(f"optim.milestones {self.milestones} have no effect with optim.schedule {self.schedule!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones {self.milestones} must ascend")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the shards are and how images become batches."""

    train: str
    """Shard folder to train on: a path or URI that every worker can read."""
    eval: str = ""
    """Shard folder to evaluate on. Empty: no evaluation while training."""
    resize: Resize = field(default_factory=Resize)
    """Size of inputs, in training and evaluation."""
    augment: Augment = field(default_factory=Augment)
    """Random geometry in training."""
    batch_size: int = 8
    """Images per worker and forward pass. More use more memory and make steps fewer; scale ``optim.lr`` with them
    (``optim.lr_batch``)."""
    eval_batch_size: int = 8
    """Images per worker and forward pass in evaluation. More are faster and use more memory."""
    loaders: int = 2
    """Processes per worker that decode images. Raise it while the device waits for data. 0: decode in the worker
    itself."""
    window: int = 4096
    """Samples that are shuffled together, on top of the shuffled shards. More mix better and use more memory."""
    labelled_only: bool = True
    """Train only on images with at least one labelled keypoint."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} {getattr(self, name)} must be at least 1")
        if self.loaders < 0:
            raise ValueError(f"data.loaders {self.loaders} must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long and with which arithmetic."""

    epochs: float = 100
    """Passes over the training images; a fraction is allowed. More passes take longer and usually reach a higher AP."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step. Raise it for a larger batch in the same memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster and needs less memory on GPUs: the network runs under autocast, geometry and losses stay in
    float32."""
    channels_last: bool = True
    """NHWC memory: faster convolutions on CPU and on tensor cores."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, then faster steps."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and served, below 1. Closer to 1 averages over more steps. 0:
    none."""
    log_every: int = 20
    """Steps between looks at the losses; only then does the host wait for the device."""
    eval_every: float = 1.0
    """Epochs between evaluations (and checkpoints). Lower sees a problem earlier and spends more time on evaluation."""
    checkpoint_every: int = 0
    """Steps between additional checkpoints inside an epoch. Lower loses fewer steps when all workers die and writes
    more. 0: none."""
    keep_checkpoints: int = 2
    """Latest checkpoints that are kept; the best one is always kept too."""
    stall_s: float = 600.0
    """Seconds without a step, evaluated batch or checkpoint after which every rank tells where it hangs; three times as
    many for its first step. 0: never."""
    stall_end_s: float = 0.0
    """Seconds after which such a worker also ends itself, and the run goes on from its last checkpoint. 0: never."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "log_every", "eval_every", "keep_checkpoints"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} {getattr(self, name)} must be positive")
        if self.stall_s < 0:
            raise ValueError(f"train.stall_s {self.stall_s} must not be negative; 0 turns the watchdog off")
        if self.stall_end_s and not 0 < self.stall_s < self.stall_end_s:
            raise ValueError(
                f"train.stall_end_s {self.stall_end_s} must be 0, or above train.stall_s ({self.stall_s}), which is on"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay {self.ema_decay} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How poses are predicted and scored."""

    flip: bool = False
    """Also predict the mirrored image and average: usually a higher AP for twice the time."""
    scales: tuple[int, ...] = ()
    """Short sides in pixels of multi-scale prediction: each adds the time of a prediction. Empty: ``data.resize``
    alone."""
    max_side: int = 2000
    """Pixels that the long side may not pass in multi-scale prediction."""
    max_detections: int = 20
    """Poses per image that are scored, best first; COCO's protocol takes 20."""
    oracle_scores: bool = False
    """Score candidates by their true OKS before duplicates are removed: what perfect ranking would reach."""
    oracle_boxes: Literal["none", "no_false", "no_missed", "annotated"] = "none"
    """Correct boxes by the annotated ones before poses are refined in them: without those that show nobody, with
    those that were missed, or the annotated ones alone. For top-down methods."""
    backend: Literal["pycocotools", "faster"] = "pycocotools"
    """Scorer: the reference, or faster-coco-eval (same numbers) where it is installed."""
    overlays: int = 8
    """Evaluation images that are drawn with truth and prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingConfig:
    """The workers of the run."""

    num_workers: int = 1
    """Training processes. More finish sooner, and a step has ``data.batch_size`` images of each. 0: train in this
    process, without Ray."""
    min_workers: int = 0
    """Fewest training processes that the run goes on with when nodes go; each then computes more of every step, which
    stays the same. 0: all of ``num_workers``, else the run waits for new nodes."""
    grow_every: float = 60.0
    """Seconds between looks for room for more workers, where there are fewer than ``num_workers``."""
    use_gpu: bool = False
    """Reserve one GPU for each worker. Without it workers compute on CPUs."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker reserves; also its number of threads. Leave one free on small machines."""
    max_failures: int = 3
    """Times that lost workers are replaced and the run goes on from its last checkpoint. -1: always."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"scaling.num_workers {self.num_workers} must not be negative")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"scaling.min_workers {self.min_workers} must be from 0 to scaling.num_workers, {self.num_workers}"
            )
        if self.grow_every <= 0:
            raise ValueError(f"scaling.grow_every {self.grow_every} must be positive")

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run goes on."""
        return 0 < self.min_workers < self.num_workers

    @property
    def threads_per_worker(self) -> int:
        """Threads that PyTorch computes with in each of ``num_workers`` processes."""
        return max(1, int(self.cpus_per_worker))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where the run is kept and found again."""

    name: str = ""
    """Name of the run. A name that exists is resumed (see ``run.resume``). Empty: method, date and time."""
    storage: str = STORAGE
    """Folder or URI under which runs are kept; shared by all nodes. Relative paths start at $POSEFLEET_HOME, else
    at the current folder, or in a Ray job, whose folder is temporary, at the home folder."""
    tracking: str = ""
    """MLflow store: sqlite:/// or http(s)://. Empty: $MLFLOW_TRACKING_URI, else mlflow.db under ``storage``."""
    experiment: str = "posefleet"
    """MLflow experiment that the run is listed in."""
    resume: bool = True
    """Go on with a run of the same name; false makes an existing name an error."""
    parent: str = ""
    """MLflow run that this one is listed under, such as that of the search which it is a trial of."""
    init_from: str = ""
    """Checkpoint, run's folder, or models:/NAME@ALIAS, whose weights the run starts from (fine-tuning); ignored when
    the run resumes."""
    profile: str = ""
    """Steps to profile, such as steps=5,wait=10,ranks=all; also --profile. Empty: none."""

    def __post_init__(self) -> None:
        if self.profile:
            Profile.parse(self.profile)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines a run. ``model`` holds the method's own ``Config``."""

    method: str
    """File name of the method in models/."""
    schema: str = "coco17"
    """Name of the keypoint schema: names and order of the keypoints."""
    seed: int = 0
    """Seed of weights, sample order and augmentation; the same seed repeats a run."""
    model: Any
    """The method's settings."""
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _ = self.keypoints  # an unknown schema is an error at once

    @functools.cached_property
    def keypoints(self) -> KeypointSchema:
        """The keypoint schema that ``schema`` names."""
        return load_schema(self.schema)

    @property
    def images_per_step(self) -> int:
        """Images of one optimiser step, over all workers."""
        return self.data.batch_size * max(1, self.scaling.num_workers) * self.train.accumulate
