"""Search spaces: the settings that a search varies, and their values.

A space is a YAML file of dotted names of settings. A list is a choice. ``{low: 0.2, high: 0.7}`` is a range that
includes both ends; it has whole numbers only if its ends are whole. ``log: true`` draws the logarithm evenly, ``step:
2`` takes every second value::

    optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
    model.adapt.kem_size: {low: 7, high: 19, step: 2}
    model.decode.nms: [linear, gaussian, hard]
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, read_yaml, to_dict, with_settings

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A setting with a list of values."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: all of them."""
        return self.values

    def suggest(self, trial: "Trial", name: str) -> Any:
        """Draw a value for a trial; Optuna draws its JSON text, as Optuna's storages keep no lists."""
        return json.loads(trial.suggest_categorical(name, [self.drawn(value) for value in self.values]))

    def drawn(self, value: Any) -> Any:
        """The JSON text that Optuna draws for a value."""
        return json.dumps(value)

    def listed(self, name: str) -> Sequence[Any]:
        """All values, for a grid; ``name`` is not used."""
        return self.values

    def nearest(self, value: Any) -> Any:
        """``value`` itself: a population mutates a choice to one of its values only."""
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A setting with numbers from ``low`` to ``high``, both included.

    ``log``: the logarithm is drawn evenly. ``step``: only ``low``, ``low + step``, ... are drawn.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: both ends."""
        return (self.low, self.high)

    def suggest(self, trial: "Trial", name: str) -> float:
        """Draw a value for a trial."""
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, log=self.log, step=step)
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def drawn(self, value: Any) -> Any:
        """The value itself, as Optuna draws it."""
        return value

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def random(self, rng: random.Random) -> float:
        """Draw a value without a study."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high)
        return self.nearest(math.exp(value) if self.log else value)

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to ``value``."""
        value = min(max(value, self.low), self.high)
        if step := self.step or (1 if self.whole else 0):
            most = math.floor((self.high - self.low) / step + 1e-9)
            value = self.low + step * min(round((value - self.low) / step), most)
        return int(value) if self.whole else value

    def listed(self, name: str) -> Sequence[Any]:
        """All values, for a grid.

        Raises:
            ValueError: They are infinitely many or drawn by their logarithm; the message gives ``name``.
        """
        step = self.step or (1 if self.whole else 0)
        if not step or self.log:
            raise ValueError(f"a grid takes lists, whole numbers and ranges with a step; {name} is {self}")
        return [self.low + step * index for index in range(int((self.high - self.low) / step + 1e-9) + 1)]


Space = Mapping[str, Choice | Range]


def read_space(path: Path | str, base: Experiment) -> dict[str, Choice | Range]:
    """Read the space of a YAML file, and check it against the experiment that it varies.

    Raises:
        ValueError: The file is missing or empty, a range is invalid, or the experiment has no such setting or cannot
            have such a value; the message gives the name, the value and what is possible.
    """
    return build_space(read_yaml(path), base, where=str(path))


def build_space(values: Mapping[str, Any], base: Experiment, *, where: str) -> dict[str, Choice | Range]:
    """The space of a YAML file's content; ``where`` names it in errors, which are those of :func:`read_space`."""
    space = {name: _domain(domain, f"{where}: {name}") for name, domain in values.items()}
    if not space:
        raise ValueError(
            f"{where} is empty; give dotted names of settings, such as optim.lr: {{low: 1.0e-4, high: 1.0e-2}}"
        )
    for name, domain in space.items():
        for value in domain.ends:
            apply(base, {name: value}, where=f"{where}: {name} = {value}")
    return space


def apply(base: Experiment, settings: Mapping[str, Any], *, where: str = "settings") -> Experiment:
    """``base`` with the values of ``settings``, by dotted name; ``where`` names them in errors.

    Raises:
        ValueError: A name or value is invalid, or values contradict each other.
    """
    return build_experiment(with_settings(to_dict(base, passwords=True), settings), where=where)


def suggest(trial: "Trial", space: Space) -> dict[str, Any]:
    """Draw the settings of one trial of an Optuna study."""
    return {name: domain.suggest(trial, name) for name, domain in space.items()}


def settings_of(base: Experiment, names: Sequence[str]) -> dict[str, Any]:
    """The values that the experiment has for these dotted names."""
    found = {}
    for name in names:
        value: Any = base
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


def grid(space: Space) -> dict[str, list[Any]]:
    """Every value of every setting, as Optuna draws it.

    Raises:
        ValueError: A range has infinitely many values.
    """
    return {name: [domain.drawn(value) for value in domain.listed(name)] for name, domain in space.items()}


def contains(domain: Choice | Range, value: Any) -> bool:
    """Whether ``value`` is one of the values of ``domain``."""
    if isinstance(domain, Choice):
        return domain.drawn(value) in [domain.drawn(v) for v in domain.values]
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return False
    steps = (value - domain.low) / domain.step if domain.step else 0.0
    return abs(steps - round(steps)) < 1e-9


def _domain(domain: Any, where: str) -> Choice | Range:
    if isinstance(domain, list):
        if not domain:
            raise ValueError(f"{where} has no values to choose from")
        return Choice(values=tuple(domain))
    known = {"low", "high", "log", "step"}
    if not isinstance(domain, dict) or not {"low", "high"} <= set(domain) <= known:
        raise ValueError(
            f"{where} must be a list of values or {{low: a, high: b}} with log: true or step: n, not {domain}"
        )
    numbers = [domain["low"], domain["high"], domain.get("step", 1)]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ValueError(
            f"{where}: low, high and step must be numbers, not {numbers} (YAML reads 1e-4 as text; write 1.0e-4)"
        )
    if not isinstance(domain.get("log", False), bool):
        raise ValueError(f"{where}: log must be true or false, not {domain['log']}")
    result = Range(low=domain["low"], high=domain["high"], log=domain.get("log", False), step=domain.get("step"))
    if not result.low < result.high or (result.step or 1) <= 0:
        raise ValueError(f"{where}: low {result.low} must be below high {result.high}, and step above 0")
    if result.log and (result.low <= 0 or result.step):
        raise ValueError(f"{where}: a log range starts above 0, not at {result.low}, and has no step")
    return result
