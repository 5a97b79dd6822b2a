"""The experiment: all settings that determine a run, as typed dataclasses.

A YAML file sets fields by section and name; ``--section.field value`` on the command line wins over the file. An
unknown key or a wrong type is an error that names the key; for an unknown key, also the valid ones. The text below a
field is its help on the command line.
"""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import choose_schema
from posefleet.data.shards.layout import read_manifest
from posefleet.data.transforms import Augment, Resize
from posefleet.platform.config.sources import DataSource, joined_schema, paths, settled
from posefleet.platform.runtime.paths import STORAGE

Precision = Literal["float32", "bfloat16", "float16"]
"""Number format in which a network computes."""

MirrorName = Literal["tensorboard", "wandb"]
"""Where a run can be shown besides MLflow."""

GRAMMAR = "write steps=5, or steps=5,wait=10,ranks=all"
"""Advice in the error about a malformed profile setting."""

LONGEST_NOTE = 300
"""Characters of the longest ``run.note``; it is shown beside every result."""

WAIT = 5
"""Default number of steps to skip before a profile."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Which steps are profiled, and on which ranks."""

    steps: int
    """Number of steps to profile."""
    wait: int = WAIT
    """Steps to skip first; the first steps are slower than later ones."""
    everywhere: bool = False
    """Profile all ranks instead of rank 0 alone."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``steps=N``, ``steps=N,wait=N`` or ``steps=N,wait=N,ranks=all``; ``ranks=0`` is the default.

        Raises:
            ValueError: ``text`` has another form, or a number is too small.
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


def keypoint_pairs(text: str) -> dict[str, str]:
    """Parse ``nose=snout,left_wrist=left_front_paw``: keypoint of the checkpoint = keypoint of the model.

    Returns:
        Keypoint of the model -> keypoint of the checkpoint.

    Raises:
        ValueError: A part has another form, or a keypoint of the model is there twice.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        source, found, target = (word.strip() for word in part.partition("="))
        if not (found and source and target):
            raise ValueError(f"run.init_map {text!r}: {part!r} is not CHECKPOINT=MODEL, such as nose=snout")
        if target in pairs:
            raise ValueError(f"run.init_map {text!r}: {target} gets two keypoints, {pairs[target]} and {source}")
        pairs[target] = source
    return pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with momentum; adamw is AdamW, which needs a learning rate about 10 to 100 times lower."""
    lr: float = 0.02
    """Learning rate after warm-up, for ``optim.lr_batch`` images per step. A higher rate learns faster until the loss
    diverges."""
    lr_batch: int = 0
    """Images per step for which ``optim.lr`` was chosen; the learning rate scales linearly with the real number, so
    more workers or larger batches need no other ``optim.lr``. 0: do not scale."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of parameters under ``backbone``."""
    copied_lr: float = 1.0
    """Factor on the learning rate of parameters that came whole from ``run.init_from``. Below 1 they move less than
    those that are new, and forget less; 0.1 is usual."""
    bias_lr: float = 1.0
    """Factor on the learning rate of biases."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW."""
    weight_decay: float = 1e-4
    """L2 (SGD) or decoupled (AdamW) decay of weights; biases and norms never decay. A higher decay fits the training
    images less closely."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls over the run."""
    milestones: tuple[float, ...] = ()
    """Epochs after which the schedule ``step`` multiplies the learning rate by ``gamma``."""
    gamma: float = 0.1
    """Factor on the learning rate at each milestone of the schedule ``step``."""
    warmup_steps: int = 500
    """Number of warm-up steps of the optimiser."""
    warmup_factor: float = 1 / 3
    """Factor on the learning rate at the start of warm-up."""
    warmup: Literal["constant", "linear"] = "constant"
    """constant keeps ``warmup_factor`` during warm-up; linear rises from it to 1."""
    clip_norm: float = 35.0
    """Maximum norm of all gradients together. 0: do not clip."""

    def __post_init__(self) -> None:
        if self.copied_lr <= 0:
            raise ValueError(f"optim.copied_lr {self.copied_lr} must be positive; train.freeze keeps parts as they are")
        if self.lr <= 0:
            raise ValueError(f"optim.lr {self.lr} must be positive")
        if self.schedule != "step" and self.milestones:
            raise ValueError(f"optim.milestones {self.milestones} have no effect with optim.schedule {self.schedule!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones {self.milestones} must ascend")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training and evaluation data, and how images become batches."""

    train: Annotated[str | tuple[DataSource, ...], "PATH"]
    """Shard folder to train on: a path or URI that every worker can read. FOLDER@SPLIT reads a data set in COCO's
    format, or as a label tool exports it, without shards; for sets that fit one machine. Several, as PATH or
    PATH,weight=3, are mixed by their weights; each may label other keypoints (docs/schemas.md)."""
    eval: Annotated[str | tuple[DataSource, ...], "PATH"] = ""
    """Shard folder or FOLDER@SPLIT to evaluate on. Several are scored one by one, each by its own keypoints, and
    together. Empty: no evaluation while training."""
    resize: Resize = field(default_factory=Resize)
    """Size of input images in training and evaluation."""
    augment: Augment = field(default_factory=Augment)
    """Random geometric augmentation in training."""
    batch_size: int = 8
    """Images per worker and forward pass. A larger batch uses more memory and takes fewer steps per epoch; scale
    ``optim.lr`` with it (``optim.lr_batch``)."""
    eval_batch_size: int = 8
    """Images per worker and forward pass in evaluation. A larger batch is faster and uses more memory."""
    loaders: int = 2
    """Processes per worker that decode images. Raise it if the device waits for data. 0: decode in the worker
    itself."""
    window: int = 4096
    """Samples that are shuffled together, after the shards are shuffled. More mix better and use more memory."""
    labelled_only: bool = True
    """Train only on images with at least one labelled keypoint."""

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            object.__setattr__(self, name, settled(getattr(self, name), f"data.{name}"))
        for name in ("batch_size", "eval_batch_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} {getattr(self, name)} must be at least 1")
        if self.loaders < 0:
            raise ValueError(f"data.loaders {self.loaders} must not be negative")

    @property
    def train_sources(self) -> tuple[DataSource, ...]:
        """The sources of a run that trains on a list of them; none if ``train`` is one shard folder."""
        return () if isinstance(self.train, str) else self.train

    @property
    def several(self) -> bool:
        """Whether the run trains on several sources, each of which may label some keypoints of the model only."""
        return bool(self.train_sources)

    @property
    def one_eval(self) -> str:
        """The shard folder of ``eval``, for what scores one set of images; empty if there is none.

        Raises:
            ValueError: ``eval`` names several sources.
        """
        found = paths(self.eval)
        if len(found) > 1:
            raise ValueError(
                f"data.eval names {len(found)} sources, but this scores one; give --data.eval with one path"
            )
        return found[0] if found else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Length, precision, checkpoints and monitoring of training."""

    epochs: float = 100
    """Passes over the training images; may be a fraction. More passes take longer and usually reach a higher AP."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step. Raise it for a larger batch in the same memory."""
    precision: Precision = "float32"
    """bfloat16 and float16 are faster and need less memory on GPUs: the network runs under autocast, geometry and
    losses stay in float32. float16 is for GPUs without bfloat16 (T4, V100): the loss is scaled, and steps whose
    gradients overflow are skipped."""
    channels_last: bool = True
    """Store images as NHWC, which makes convolutions faster on CPUs and tensor cores."""
    compile: bool = False
    """Compile the model with torch.compile: takes minutes at the start, then steps are faster."""
    ema_decay: float = 0.0
    """Decay, below 1, of the averaged weights that are evaluated and served. A value closer to 1 averages over more
    steps. 0: none."""
    log_every: int = 20
    """Steps between two logs of the losses; the host waits for the device only then."""
    eval_every: float = 1.0
    """Epochs between evaluations (and checkpoints). A lower value shows problems earlier and costs more time."""
    checkpoint_every: int = 0
    """Steps between additional checkpoints within an epoch. A lower value loses fewer steps when all workers die, and
    writes more. 0: none."""
    patience: int = 0
    """Evaluations without a higher AP after which the run ends; the best checkpoint is kept as always. Lower saves
    time, and may end in a lull. 0: never."""
    freeze: tuple[str, ...] = ()
    """Parts that do not learn, such as ``backbone``, ``neck`` or ``towers`` (all towers of the head), or any name of a
    module. Steps are faster, and small data sets spoil less of what was learned before."""
    freeze_epochs: float = 0.0
    """Epochs after which the frozen parts learn too. 0: they stay frozen."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep; the best one is always kept too."""
    stall_s: float = 600.0
    """Seconds without a step, evaluated batch or checkpoint after which every rank logs where it hangs; three times as
    many before its first step. 0: never."""
    stall_end_s: float = 0.0
    """Seconds without a step, evaluated batch or checkpoint after which a worker ends itself and the run resumes from
    its last checkpoint; more than ``stall_s``, and three times as many before its first step. 0: never."""

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
        if self.patience < 0:
            raise ValueError(f"train.patience {self.patience} must not be negative; 0 never ends a run early")
        if self.freeze_epochs and not self.freeze:
            raise ValueError(f"train.freeze_epochs {self.freeze_epochs} has no effect: train.freeze names no part")
        if not 0 <= self.freeze_epochs < self.epochs:
            raise ValueError(
                f"train.freeze_epochs {self.freeze_epochs} must be below train.epochs {self.epochs}; 0 keeps the parts "
                "frozen to the end"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How poses are predicted and scored."""

    flip: bool = False
    """Predict the mirrored image too and average both: usually a higher AP, for twice the time."""
    scales: tuple[int, ...] = ()
    """Short sides, in pixels, of multi-scale prediction; each costs the time of one prediction. Empty: the size of
    ``data.resize`` alone."""
    max_side: int = 2000
    """Maximum pixels of the long side in multi-scale prediction."""
    max_detections: int = 20
    """Maximum number of poses per image that are scored, best first; COCO's protocol has 20."""
    oracle_scores: bool = False
    """Replace the scores of candidates by their OKS with the ground truth before duplicates are removed: the AP that
    perfect ranking would reach."""
    oracle_boxes: Literal["none", "no_false", "no_missed", "annotated"] = "none"
    """Correct the predicted boxes with the annotated ones before poses are refined in them: no_false drops boxes
    without a person, no_missed adds missed people, annotated takes only annotated boxes. For top-down methods."""
    detections: str = ""
    """File of COCO detection results (json) whose boxes of people replace those of the model's detector, so that any
    detector can be tried. Give all its boxes: after its NMS a filter has little to choose from. For top-down methods.
    Empty: the model's detector."""
    backend: Literal["pycocotools", "faster"] = "pycocotools"
    """COCO scorer: pycocotools is the reference; faster is faster-coco-eval, which must be installed, and gives the
    same numbers."""
    overlays: int = 8
    """Number of evaluation images that are drawn with ground truth and prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingConfig:
    """The workers of the run."""

    num_workers: int = 1
    """Number of training processes. More finish sooner; each adds ``data.batch_size`` images to a step. 0: train in
    this process, without Ray."""
    min_workers: int = 0
    """Minimum number of training processes with which the run continues when nodes are lost; each then computes a
    larger part of every step, which stays the same. 0: ``num_workers``, so the run waits for new nodes."""
    grow_every: float = 60.0
    """Seconds between checks for free resources while there are fewer than ``num_workers`` workers."""
    use_gpu: bool = False
    """Reserve one GPU for each worker. Without it, workers compute on CPUs."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each worker, and its number of threads. Leave one CPU free on small machines."""
    max_failures: int = 3
    """How often lost workers are replaced and the run resumes from its last checkpoint. -1: always."""

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
        """Whether the number of workers may change during the run."""
        return 0 < self.min_workers < self.num_workers

    @property
    def threads_per_worker(self) -> int:
        """Number of PyTorch threads in each training process."""
        return max(1, int(self.cpus_per_worker))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Name, storage, MLflow tracking and initial weights of the run."""

    name: str = ""
    """Name of the run. A run with this name is resumed (see ``run.resume``). Empty: method, date and time."""
    storage: str = STORAGE
    """Folder or URI that holds the runs; all nodes must share it. Relative paths start at $POSEFLEET_HOME, else at the
    current folder, or in a Ray job, whose folder is temporary, at the home folder."""
    tracking: str = ""
    """MLflow store: sqlite:/// or http(s)://. Empty: $MLFLOW_TRACKING_URI, else mlflow.db under ``storage``."""
    experiment: str = "posefleet"
    """MLflow experiment that lists the run."""
    resume: bool = True
    """Resume a run of the same name; false makes an existing name an error."""
    parent: str = ""
    """Id of the MLflow run under which this run is listed, such as the search that this run is a trial of."""
    init_from: str = ""
    """Checkpoint, folder of a run, or models:/NAME@ALIAS whose weights the run starts from (fine-tuning); ignored when
    the run resumes. It may have another keypoint schema: what both have is copied, the rest starts anew."""
    init_map: str = ""
    """Keypoints that mean the same in ``run.init_from`` and in this run but have other names there, as
    CHECKPOINT=MODEL,...: nose=snout,left_wrist=left_front_paw. Keypoints of the same name need no entry."""
    note: str = ""
    """What users of the model must know, in a sentence: "It knows rendered people only." Every checkpoint of the run
    keeps it; the registry, the server, its page and batch prediction show it. Empty: nothing."""
    mirrors: tuple[MirrorName, ...] = ()
    """Where the run is shown besides MLflow: tensorboard (event files in the run's folder), wandb (Weights & Biases;
    online where an API key is known, else files for ``wandb sync``). MLflow gets everything all the same."""
    profile: str = ""
    """Steps to profile, such as steps=5,wait=10,ranks=all; also --profile. Empty: none."""

    def __post_init__(self) -> None:
        if self.profile:
            Profile.parse(self.profile)
        if len(self.note) > LONGEST_NOTE or not self.note.isprintable():
            raise ValueError(
                f"run.note {self.note[:40]!r}... must be one line of at most {LONGEST_NOTE} printable characters"
            )
        if keypoint_pairs(self.init_map) and not self.init_from:
            raise ValueError(f"run.init_map {self.init_map!r} has no effect without run.init_from")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings that determine a run; ``model`` holds the ``Config`` of the method."""

    method: str
    """Name of the method, a module in models/."""
    schema: Annotated[str | dict[str, Any], "NAME"] = "auto"
    """Keypoints: a shipped schema, a YAML file, or auto: those of the shards ``data.train``, the union of several. A
    run stores the whole schema, so the file is read once."""
    seed: int = 0
    """Seed of initial weights, sample order and augmentation; the same seed repeats a run."""
    model: Any
    """The method's settings."""
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        train, start = self.train, self.run.init_from
        if self.optim.copied_lr != 1 and not start:
            raise ValueError(f"optim.copied_lr {self.optim.copied_lr} has no effect without run.init_from")
        if train.patience and not self.data.eval:
            raise ValueError(f"train.patience {train.patience} counts evaluations, but data.eval is empty")
        if (parts := set(train.freeze) - {"backbone"}) and not start:
            raise ValueError(
                f"train.freeze {', '.join(sorted(parts))} would stay random: run.init_from is empty; only a pretrained "
                "backbone can be frozen without it"
            )
        backbone = getattr(self.model, "backbone", None)
        if "backbone" in train.freeze and not start and not getattr(backbone, "pretrained", False):
            raise ValueError(
                "train.freeze backbone would stay random: run.init_from is empty and model.backbone.pretrained is off"
            )

    @functools.cached_property
    def keypoints(self) -> KeypointSchema:
        """The keypoint schema that ``schema`` means.

        Raises:
            ValueError: There is no such schema.
            DataError: ``schema`` is auto and ``data.train`` holds no shards.
        """
        return choose_schema(self.schema, self._schema_of_data)

    def _schema_of_data(self) -> KeypointSchema:
        train = self.data.train
        if not train:
            raise DataError("schema auto reads the keypoints of data.train, which is empty; name a schema, or shards")
        return read_manifest(train).schema if isinstance(train, str) else joined_schema(train)

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step, of all workers together."""
        return self.data.batch_size * max(1, self.scaling.num_workers) * self.train.accumulate
