"""Reads an experiment from the command line: ``--config FILE``, and ``--section.field VALUE``, which wins over it.

Options are listed and checked without importing torch, so ``--help`` and a mistyped option take a few tenths of a
second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from posefleet.command_line import Given, Option, convert, fail, options, parse, summary
from posefleet.light_import import light_import

if TYPE_CHECKING:
    from posefleet.platform.config.experiment import Experiment

T = TypeVar("T")

DATA = ("data.train", "data.eval", "data.batch_size", "data.loaders", "data.resize.short_side", "data.resize.long_side")
EVALUATE = (
    *("data.eval", "data.eval_batch_size"),
    *("evaluate.flip", "evaluate.scales", "evaluate.max_detections", "evaluate.detections"),
)
WORKERS = ("scaling.num_workers", "scaling.min_workers", "scaling.use_gpu", "scaling.cpus_per_worker")
TRAIN = (
    "seed",
    *DATA,
    *("optim.name", "optim.lr", "optim.lr_batch", "optim.weight_decay"),
    *("train.epochs", "train.accumulate", "train.precision", "train.eval_every"),
    *WORKERS,
    *("run.name", "run.storage", "run.tracking", "run.init_from"),
)
"""Options that people often change. ``--help`` shows these, ``--help-all`` shows all."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training job besides the settings of its experiment."""

    config: Annotated[str, "FILE"] = ""
    """YAML file with settings, such as one of jobs/configs/. The options below win over it."""
    profile: Annotated[str, "steps=N"] = ""
    """Profile N training steps and keep the trace in the run: steps=5, or steps=5,wait=10,ranks=all."""


def experiment_options(method: str = "") -> list[Option]:
    """The options of an experiment, with ``model.*`` from the ``Config`` of the method.

    Args:
        method: Name of the method. Empty: leave out ``model.*``.

    Raises:
        ValueError: There is no such method.
    """
    found = options(light_import("posefleet.platform.config.experiment", "Experiment"))
    if not method:
        return [option for option in found if option.path != "model"]
    config = light_import(light_import("posefleet.models", "method_module")(method), "Config")
    model = options(config, "model.", "The method's settings.")
    return [each for option in found for each in (model if option.path == "model" else [option])]


def parse_experiment(method: str, arguments: Sequence[str] | None = None, *, shown: Sequence[str] = ()) -> "Experiment":
    """The experiment that the command line of a training job describes.

    Exits with status 2 and a message on bad input, with 0 after ``--help`` and ``--help-all``.

    Args:
        method: Name of the method to train.
        arguments: Command line without the program. None: that of this process.
        shown: Dotted names of the method's options that ``--help`` shows.
    """
    try:
        more = experiment_options(method)
        module = light_import("posefleet.models", "method_module")(method)
        job = f"train_{method}.py" if module != method else f"train.py {method}"
        own, given = parse(
            TrainOptions,
            arguments,
            command=f"train {method}",
            about=f"Train {summary(module)}\n\n"
            f"On a cluster: ray job submit --working-dir . -- python jobs/{job}, with the same options.\n"
            "The same command with the same --run.name goes on with the run.",
            more=more,
            shown=(*TRAIN, *(option.path for option in more if option.path in shown)),
            values=_values_of_file,
        )
        return configured(method, own.config, {**given, **({"run.profile": [own.profile]} if own.profile else {})})
    except ValueError as error:
        fail(error)


def parse_with_settings(
    kind: type[T], arguments: Sequence[str] | None, *, command: str, about: str, shown: Sequence[str]
) -> tuple[T, Given]:
    """The options of a job, and the experiment settings given with them, as text for :func:`override`.

    Settings of the model (``--model.*``) are not checked here, because the method is not known yet.

    Args:
        kind: Dataclass of the job's own options.
        arguments: Command line without the program. None: that of this process.
        command: Name of the job in the command ``posefleet``.
        about: Text at the top of ``--help``.
        shown: Dotted names of the settings that ``--help`` shows.
    """
    return parse(
        kind,
        arguments,
        command=command,
        about=f"{about.strip()}\n\nSettings of the model are options too: posefleet train METHOD --help shows them.",
        more=experiment_options(),
        shown=shown,
        open_section="model.",
    )


def configured(method: str, config: str, given: Mapping[str, Sequence[str]]) -> "Experiment":
    """The experiment of a config file and of command-line options, which win over the file.

    Args:
        method: Name of the method to train.
        config: Path of a YAML file. Empty: none.
        given: Dotted names of options and their values as text.

    Raises:
        ValueError: A setting is unknown, wrong or missing, or the file is for another method.
    """
    settings = convert(given, experiment_options(method))
    from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings  # torch takes seconds

    values = read_yaml(config) if config else {}
    if values.setdefault("method", method) != method:
        raise ValueError(f"{config} is for method {values['method']!r}; this job trains {method!r}")
    values = with_settings(values, settings)
    where = " and ".join(filter(None, (config, "command line" if settings or not config else "")))
    if isinstance(values.setdefault("data", {}), dict):
        values["data"].setdefault("train", "")
    experiment = build_experiment(values, where=where)
    if not experiment.data.train:
        raise ValueError("data.train is missing; give the shard folder in the config or as --data.train FOLDER")
    return experiment


def override(defaults: "Experiment", given: Mapping[str, Sequence[str]]) -> "Experiment":
    """The experiment ``defaults`` with some settings replaced by command-line options.

    Args:
        defaults: Experiment whose other settings stay.
        given: Dotted names of options and their values as text, from :func:`posefleet.command_line.parse`.

    Raises:
        ValueError: An option is unknown or wrong, or the options contradict each other.
    """
    from posefleet.platform.config.loading import build_experiment, to_dict, with_settings

    settings = convert(given, experiment_options(defaults.method))
    return build_experiment(with_settings(to_dict(defaults, passwords=True), settings), where="command line")


def _values_of_file(given: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """Values in ``--config FILE`` by dotted name; ``--help`` shows them as defaults."""
    from posefleet.plain_yaml import parse_yaml

    found: dict[str, Any] = {}
    for path in given.get("config", []):
        try:
            found |= dotted(parse_yaml(Path(path).read_bytes(), "it"))
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no config file: {error}") from None
    return found


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: ``{"optim": {"lr": 0.1}}`` -> ``{"optim.lr": 0.1}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
