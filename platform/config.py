"""The experiment: everything that determines a run, typed, from YAML and the command line.

A YAML file gives sections and fields by name; ``--section.field value`` on the command line wins over it. Unknown
keys and wrong types are errors that name the key and the valid ones.
"""

import copy
import dataclasses
import difflib
import functools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from posefleet.data.keypoints import load_schema
from posefleet.data.transforms import Augment, Resize
from posefleet.models import load_method
from posefleet.platform.optim import OptimConfig
from posefleet.platform.profiling import Profile
from posefleet.platform.runtime.paths import STORAGE
from posefleet.platform.runtime.redaction import redacted


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
    """Images per worker and forward pass."""
    eval_batch_size: int = 8
    """Images per worker and forward pass in evaluation."""
    loaders: int = 2
    """Decoding processes per worker. 0: decode in the worker itself."""
    window: int = 4096
    """Samples that are shuffled together, on top of the shuffled shards."""
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
    """Passes over the training images; a fraction is allowed."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the network under autocast; geometry and losses stay in float32."""
    channels_last: bool = True
    """NHWC memory: faster convolutions on CPU and on tensor cores."""
    compile: bool = False
    """Compile the model with torch.compile."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and served. 0: none."""
    log_every: int = 20
    """Steps between looks at the losses; only then does the host wait for the device."""
    eval_every: float = 1.0
    """Epochs between evaluations (and checkpoints)."""
    checkpoint_every: int = 0
    """Steps between additional checkpoints inside an epoch. 0: none."""
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
    """Also predict the mirrored image."""
    scales: tuple[int, ...] = ()
    """Short sides in pixels of multi-scale prediction; empty: ``data.resize`` alone."""
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
    """Training processes. 0: train in this process, without Ray."""
    min_workers: int = 0
    """Fewest training processes that the run goes on with when nodes go; each then computes more of every step, which
    stays the same. 0: all of ``num_workers``, else the run waits for new nodes."""
    grow_every: float = 60.0
    """Seconds between looks for room for more workers, where there are fewer than ``num_workers``."""
    use_gpu: bool = False
    """One GPU for each worker."""
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
    """Name of the run. Empty: method, date and time. A name that exists is resumed (see ``resume``)."""
    storage: str = STORAGE
    """Folder or URI under which runs are kept; shared by all nodes. Relative paths start at $POSEFLEET_HOME, else
    at the current folder, or in a Ray job, whose folder is temporary, at the home folder."""
    tracking: str = ""
    """MLflow store: sqlite:/// or http(s)://. Empty: $MLFLOW_TRACKING_URI, else mlflow.db under ``storage``."""
    experiment: str = "posefleet"
    """MLflow experiment."""
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
    """Keypoint schema."""
    seed: int = 0
    """Seeds weights, sample order and augmentation."""
    model: Any
    """The method's settings."""
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        load_schema(self.schema)

    @property
    def images_per_step(self) -> int:
        """Images of one optimiser step, over all workers."""
        return self.data.batch_size * max(1, self.scaling.num_workers) * self.train.accumulate


def build_experiment(values: Mapping[str, Any], *, where: str = "configuration") -> Experiment:
    """A validated experiment from nested dictionaries.

    Raises:
        ValueError: A key is unknown or missing, or a value has the wrong type; the message names it and the choices.
    """
    import pydantic  # here and not above: workers and --help do without it

    method = values.get("method")
    if not isinstance(method, str):
        raise ValueError(f"{where}: method is missing; name a file of models/, such as method: smpr")
    kind = _experiment_type(method)
    _refuse_unknown(values, kind, where, ())
    try:
        experiment: Experiment = pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, p['loc'])) or 'experiment'}: {p['msg'].removeprefix('Value error, ')}"
            + (f" (got {p['input']!r})" if p["type"] != "missing" and not isinstance(p["input"], dict) else "")
            for p in error.errors()
        ]
        raise ValueError("\n".join([f"{where}:", *problems])) from None
    return experiment


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a config file with ``settings`` by dotted names (``optim.lr``) over them; neither changes.

    Raises:
        ValueError: A name goes on below a setting that is no section.
    """
    result = copy.deepcopy(dict(values))
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"unknown key {dotted!r}: {section} is a setting and no section")
        place[name] = value
    return result


def to_dict(experiment: Experiment, *, passwords: bool = False) -> dict[str, Any]:
    """Nested dictionaries of plain values; ``build_experiment`` takes them back.

    Args:
        passwords: Leave those of addresses in: for what is handed on, not for what is kept or shown.
    """
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(experiment), passwords))


def to_yaml(experiment: Experiment) -> str:
    """The experiment as a config file, without passwords."""
    return yaml.safe_dump(to_dict(experiment), sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The nested dictionaries of a config file.

    Raises:
        ValueError: The file is missing or is not YAML with named sections.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"no config file {path}; the shipped ones are in jobs/configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold named sections such as data: and model:, not {type(values).__name__}")
    return values


def parse_experiment(method: str, argv: Sequence[str] | None = None, *, description: str = "") -> Experiment:
    """The experiment of a training job's command line: ``--config FILE``, and ``--section.field value`` over it.

    Exits with status 2 and a message on bad input, with 0 after ``--help``.
    """
    try:
        config, arguments = take_option(sys.argv[1:] if argv is None else argv, "--config")
        profile, arguments = take_option(arguments, "--profile")
        values = read_yaml(config) if config else {}
        if values.setdefault("method", method) != method:
            raise ValueError(f"{config} is for method {values['method']!r}; this job trains {method!r}")
        if profile:
            arguments = [*arguments, "--run.profile", profile]
        # A config file may leave out what the command line gives; data.train is the only required field.
        if isinstance(values.setdefault("data", {}), dict):
            values["data"].setdefault("train", "")
        defaults = build_experiment(values, where=config or "configuration")
        help_text = (
            f"{description}\n\nGive a YAML file with --config FILE; the options below win over it. "
            "--profile steps=5 leaves a profile of five steps in the run."
        )
        experiment = override(defaults, arguments, description=help_text)
        if not experiment.data.train:
            raise ValueError("data.train is missing; give the shard folder in the config or as --data.train FOLDER")
        return experiment
    except ValueError as error:
        fail(str(error))


def override(defaults: Experiment, arguments: Sequence[str], *, description: str = "") -> Experiment:
    """``defaults`` with the options of a command line over it; exits on bad input and after ``--help``.

    Raises:
        ValueError: The options contradict each other.
    """
    import tyro

    experiment: Experiment = tyro.cli(
        _experiment_type(defaults.method),
        default=defaults,
        args=[{"true": "True", "false": "False"}.get(a, a) for a in arguments],
        description=description,
        config=(tyro.conf.FlagConversionOff,),
        use_underscores=True,
    )
    return build_experiment(to_dict(experiment, passwords=True), where="command line")


def take_option(arguments: Sequence[str], option: str) -> tuple[str, list[str]]:
    """The value of ``option`` (empty where it is absent) and the other arguments.

    Raises:
        ValueError: The option is the last argument.
    """
    value, waiting = "", False
    rest: list[str] = []
    for argument in arguments:
        if waiting:
            value, waiting = argument, False
        elif argument == option:
            waiting = True
        elif argument.startswith(option + "="):
            value = argument.removeprefix(option + "=")
        else:
            rest.append(argument)
    if waiting:
        raise ValueError(f"{option} needs a value")
    return value, rest


def fail(message: str) -> NoReturn:
    """End a job over bad input: a message, no traceback, exit status 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


@functools.cache
def _experiment_type(method: str) -> type[Experiment]:
    """``Experiment`` whose ``model`` has the type of the method's own config."""
    config: type = load_method(method).Config
    return dataclasses.make_dataclass(
        "Experiment",
        [("model", config, field(default_factory=config))],
        bases=(Experiment,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": f"Train {method}."},
    )


def _refuse_unknown(values: Mapping[str, Any], kind: Any, where: str, path: tuple[str, ...]) -> None:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in values.items():
        dotted = ".".join((*path, str(key)))
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            section = ".".join(path) or "an experiment"
            raise ValueError(f"{where}: unknown key {dotted!r}{guess} {section} has: {', '.join(names)}")
        nested = _dataclass_of(hints[key])
        if nested and isinstance(value, Mapping):
            _refuse_unknown(value, nested, where, (*path, key))


def _dataclass_of(hint: Any) -> Any:
    candidates = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((c for c in candidates if dataclasses.is_dataclass(c)), None)


def _plain(value: Any, passwords: bool) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, passwords) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, passwords) for item in value]
    return redacted(value) if isinstance(value, str) and not passwords else value
