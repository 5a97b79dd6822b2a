"""Builds a validated experiment from nested dictionaries or a YAML file, and converts it back."""

import copy
import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml

from posefleet.command_line import dataclass_in, options
from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import SchemaError
from posefleet.data.schemas.shipped import AUTO, choose_schema, compact
from posefleet.models import load_method
from posefleet.option_names import nearest
from posefleet.plain_yaml import parse_yaml
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.sources import parsed
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.redaction import redact


def build_experiment(values: Mapping[str, Any], *, where: str = "configuration") -> Experiment:
    """Build a validated experiment from nested dictionaries, with its relative paths made absolute.

    Args:
        values: Settings by section and field; ``method`` is required.
        where: Source of the values, for error messages.

    Raises:
        ValueError: A key is unknown or missing, or a value is invalid. The message names the key, and for an unknown
            key the valid ones.
    """
    import pydantic  # imported here because workers and --help do not need it

    method = values.get("method")
    if not isinstance(method, str):
        raise ValueError(f"{where}: method is missing; name a file of models/, such as method: smpr")
    kind = experiment_type(method)
    values = _with_sources(values, where)
    _refuse_unknown(values, kind, where)
    try:
        experiment: Experiment = pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problems = [
            f"  {place or 'experiment'}: {p['msg'].removeprefix('Value error, ')}"
            + (f" (got {p['input']!r})" if p["type"] != "missing" and not isinstance(p["input"], dict) else "")
            for place, p in _placed(error.errors())
        ]
        raise ValueError("\n".join([f"{where}:", *problems])) from None
    return _with_schema(with_absolute_paths(experiment), where)


def _with_sources(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The values with the texts in lists of data sources parsed."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return values
    try:
        return {**values, "data": {**data, **{name: parsed(data[name]) for name in ("train", "eval") if name in data}}}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _placed(problems: Sequence[Any]) -> list[tuple[str, Any]]:
    """Pydantic's errors by dotted name of their setting. Of a setting that may have several types, those that say that
    it is not a text are left out where it is something else."""
    found = []
    for problem in problems:
        place = [str(part) for part in problem["loc"]]
        plain = [
            part for part in place if not part.startswith(("tuple[", "dict[")) and part not in ("str", "DataSource")
        ]
        found.append((".".join(plain), place[-1:] == ["str"] and not isinstance(problem["input"], str), problem))
    better = {place for place, is_not_text, _ in found if not is_not_text}
    return [
        (place, problem)
        for place, is_not_text, problem in found
        if not (is_not_text and any(other.startswith(place) for other in better))
    ]


def _with_schema(experiment: Experiment, where: str) -> Experiment:
    """The experiment with its keypoint schema in place of a file name or auto, so that it does not change any more.

    Auto stays where the training data cannot be read, such as on a machine that only hands the settings on.
    """
    try:
        schema = compact(experiment.keypoints)
    except SchemaError as error:
        raise ValueError(f"{where}: {error}") from None
    except (DataError, OSError):
        if experiment.schema != AUTO:
            raise
        return experiment
    return experiment if schema == experiment.schema else dataclasses.replace(experiment, schema=schema)


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths, so that all processes of the run use the same folders."""
    data, run, evaluate = experiment.data, experiment.run, experiment.evaluate
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(data, train=_absolute(data.train), eval=_absolute(data.eval)),
        evaluate=dataclasses.replace(evaluate, detections=resolve_path(evaluate.detections)),
        run=dataclasses.replace(run, storage=resolve_path(run.storage), init_from=resolve_path(run.init_from)),
    )


def _absolute(data: Any) -> Any:
    """The value of ``data.train`` or ``data.eval`` (a path, or several sources) with absolute paths. A source whose
    schema is a file gets the content of that file instead, so that other machines need not have it."""
    if isinstance(data, str):
        return resolve_path(data)
    return tuple(
        dataclasses.replace(
            source,
            path=resolve_path(source.path),
            schema=source.schema if source.schema == AUTO else compact(choose_schema(source.schema)),
        )
        for source in data
    )


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` in which ``settings`` replace or add values.

    Args:
        values: Nested dictionaries of a config file; not changed.
        settings: Values by dotted name, such as ``optim.lr``.

    Raises:
        ValueError: A dotted name treats a setting as a section, as in ``optim.lr.x``.
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
    """The experiment as nested dictionaries of plain values, which ``build_experiment`` reads.

    Args:
        passwords: Keep the passwords of addresses. Set it only to pass the settings on, never to store or show them.
    """
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(experiment), passwords))


def parameters(experiment: Experiment) -> dict[str, Any]:
    """The settings for a list of parameters: as :func:`to_dict`, with the name of the keypoint schema alone."""
    schema = experiment.schema
    return {**to_dict(experiment), "schema": schema if isinstance(schema, str) else schema["name"]}


def to_yaml(experiment: Experiment) -> str:
    """The experiment as a config file, without passwords."""
    return yaml.safe_dump(to_dict(experiment), sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a config file as nested dictionaries.

    Raises:
        ValueError: The file is missing or is not YAML with named sections.
    """
    try:
        values = parse_yaml(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise ValueError(f"no config file {path}; the shipped ones are in jobs/configs/") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold named sections such as data: and model:, not {type(values).__name__}")
    return values


@functools.cache
def experiment_type(method: str) -> type[Experiment]:
    """Subclass of ``Experiment`` whose field ``model`` has the type of the method's ``Config``."""
    config: type = load_method(method).Config
    return dataclasses.make_dataclass(
        "Experiment",
        [("model", config, field(default_factory=config))],
        bases=(Experiment,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": f"Train {method}."},
    )


def _refuse_unknown(
    values: Mapping[str, Any], kind: Any, where: str, path: tuple[str, ...] = (), whole: Any = None
) -> None:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in values.items():
        dotted = ".".join((*path, str(key)))
        if key not in names:
            known = [option.path for option in options(whole or kind)]
            sections = {name.rpartition(".")[0] for name in known} - {""}
            near = nearest(dotted, [*known, *sorted(sections)])
            guess = f"; did you mean {near!r}?" if near else ""
            section = ".".join(path) or "an experiment"
            raise ValueError(f"{where}: unknown key {dotted!r}{guess}; {section} has: {', '.join(names)}")
        nested = dataclass_in(hints[key])
        if nested and isinstance(value, Mapping):
            _refuse_unknown(value, nested, where, (*path, key), whole or kind)
        for index, item in enumerate(value if isinstance(value, (list, tuple)) else ()):
            if isinstance(item, Mapping) and (inside := _dataclass_of_items(hints[key])):
                _refuse_unknown(item, inside, where, (*path, key, str(index)), inside)


def _dataclass_of_items(hint: Any) -> Any:
    """The dataclass of the items of a list in a type hint; None if there is none."""
    parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is tuple]
    return next(filter(None, (dataclass_in(item) for part in parts for item in typing.get_args(part))), None)


def _plain(value: Any, passwords: bool) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, passwords) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, passwords) for item in value]
    return redact(value) if isinstance(value, str) and not passwords else value
