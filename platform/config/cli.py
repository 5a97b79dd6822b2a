"""Reads an experiment from the command line of a job."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, experiment_type, read_yaml, to_dict


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
        experiment_type(defaults.method),
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
