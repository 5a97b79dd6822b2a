"""A search: trials of settings in a folder, which can be stopped at any time and gone on with.

The trials are an Optuna study in ``study.log``, which is the only memory of a search: who runs the trials, one after
the other (:meth:`Search.run`) or many at a time (``tune``), asks for settings and tells what came of them. The first
trial is what is searched from, if the space holds it, so that there is something to compare with. A trial that fails,
because its settings contradict each other or its numbers are not finite, is kept with its reason and costs nothing but
itself; one that was interrupted is handed out again before new ones are drawn.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_dict
from posefleet.platform.runtime.progress import ProgressLine
from posefleet.platform.tracking.runs import flatten
from posefleet.platform.tuning.space import Space, apply, contains, grid, settings_of, suggest

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
"""How settings are drawn: by a model of what was good so far, blindly, or each combination once."""

DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "AP": "maximize",
    "parameters": "minimize",
    "gflops": "minimize",
    "predict_ms": "minimize",
}
"""What a search may look for: a trial's score, and whether more of it is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One set of settings and what came of it."""

    number: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float] = field(default_factory=dict)
    """Statistics in [0, 1] and costs; empty if it failed."""
    reason: str = ""
    """Why it failed."""
    curve: Mapping[float, float] = field(default_factory=dict)
    """Epochs trained -> AP then; empty where nothing is trained."""
    stopped: float | None = None
    """Epochs after which it was given up because others were better."""
    run: str = ""
    """Folder of its run, where there is one."""

    @property
    def complete(self) -> bool:
        """Whether it reached its end with scores."""
        return bool(self.scores) and self.stopped is None


MANY = 4
"""Trials from which on it is asked what mattered."""


class Search:
    """The trials of one folder."""

    def __init__(
        self,
        folder: Path,
        base: Experiment,
        space: Space,
        *,
        about: Mapping[str, str],
        seed: int,
        sampler: Sampler = "tpe",
        objectives: Sequence[str] = ("AP",),
    ) -> None:
        """
        Args:
            folder: Made if it is new.
            base: What is searched from.
            about: What the scores depend on beside base and space, such as the checkpoint. A search goes on only if all
                of these are what they were.
            seed: Of the draws.
            sampler: How settings are drawn.
            objectives: Scores that are searched for, see ``DIRECTIONS``; with several the best trials are those that
                no other beats in all of them.

        Raises:
            ValueError: The folder holds a search of something else, an objective is unknown, or a grid has no end.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if unknown := [name for name in objectives if name not in DIRECTIONS]:
            raise ValueError(f"no objective {unknown[0]!r}; there are {', '.join(DIRECTIONS)}")
        self.folder, self.base, self.space, self.seed = folder, base, space, seed
        self.objectives = tuple(objectives)
        self._kind = sampler
        self._grid = grid(space) if sampler == "grid" else {}
        folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            study_name="search",
            directions=[DIRECTIONS[name] for name in objectives],
            storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
            load_if_exists=True,
        )
        varied = {name: str(domain) for name, domain in space.items()}
        about = {"sampler": sampler, "objectives": ", ".join(objectives), **about}
        self._check({**about, "space": json.dumps(varied), **self._fixed()})
        own = settings_of(base, list(space))
        first = not self._known() and sampler != "grid"
        if first and all(contains(domain, own[name]) for name, domain in space.items()):
            self.study.enqueue_trial({name: domain.drawn(own[name]) for name, domain in space.items()})
        self._interrupted = [trial for trial in self._known() if trial.state.name == "RUNNING"]
        self._open: dict[int, optuna.trial.Trial] = {}
        self._ended: dict[int, Trial] = {}  # what is asked after every evaluation does not go through the study
        self._best: Trial | None = None
        for trial in self._known():
            if trial.state.is_finished():
                self._note_end(trial)

    def run(self, score: Callable[[Experiment], Mapping[str, float]], trials: int) -> None:
        """Try settings until there are so many trials; ``score`` gives statistics of an experiment, among them AP.

        What ``score`` raises as a ValueError is a failed trial, and so is an AP that is no number.
        """
        with ProgressLine(trials, done=self.ended) as progress:
            while trial := self.ask(trials):
                try:
                    self.tell(trial.number, score(apply(self.base, trial.settings, where=f"trial {trial.number}")))
                except ValueError as error:
                    self.fail(trial.number, str(error))
                progress.update(self.ended, self.standing())

    def ask(self, limit: int) -> Trial | None:
        """The next trial: one that was interrupted, else a new one; None when there are ``limit`` trials."""
        import optuna

        if self._interrupted:
            known = self._interrupted.pop(0)
            trial = optuna.trial.Trial(self.study, known._trial_id)
        elif (number := len(self._known()) - self._waiting()) < min(limit, self.combinations):
            self.study.sampler = self._sampler(number)
            if self._grid and not self._waiting():  # Optuna's own grid wants to end a loop that there is not
                self.study.enqueue_trial(self._combination(number))
            trial = self.study.ask()
        else:
            return None
        settings = suggest(trial, self.space)
        trial.set_user_attr("settings", settings)
        self._open[trial.number] = trial
        return Trial(number=trial.number, settings=settings)

    def report(
        self, number: int, epoch: float, scores: Mapping[str, float], *, run: str, settings: Mapping[str, Any]
    ) -> None:
        """How a trial under way stands; its settings are those it has now."""
        trial = self._open[number]
        curve = {**trial.user_attrs.get("curve", {}), f"{epoch:.6g}": scores["AP"]}
        known = {"curve": curve, "run": run, "latest": dict(scores), "settings": dict(settings)}
        for name, value in known.items():
            trial.set_user_attr(name, value)

    def tell(self, number: int, scores: Mapping[str, float]) -> None:
        """A trial reached its end.

        Raises:
            ValueError: One of the objectives is no number; the trial is still open.
        """
        values = [scores[name] for name in self.objectives]
        for name, value in zip(self.objectives, values, strict=True):
            if math.isnan(value):
                raise ValueError(f"{name} is no number")
        trial = self._open.pop(number)
        trial.set_user_attr("scores", dict(scores))
        self._note_end(self.study.tell(trial, values))

    def stop(self, number: int, epoch: float) -> None:
        """A trial was given up after so many epochs because others were better by then."""
        from optuna.trial import TrialState

        trial = self._open.pop(number)
        scores = trial.user_attrs["latest"]
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("stopped", epoch)
        if len(self.objectives) == 1:
            trial.report(scores["AP"], round(1000 * epoch))  # a sampler compares what was stopped at the same time
        self._note_end(self.study.tell(trial, state=TrialState.PRUNED))

    def fail(self, number: int, reason: str) -> None:
        """A trial came to nothing."""
        from optuna.trial import TrialState

        trial = self._open.pop(number)
        trial.set_user_attr("reason", reason)
        self._note_end(self.study.tell(trial, state=TrialState.FAIL))

    @property
    def under_way(self) -> list[int]:
        """Trials that were handed out and of which nothing final was told."""
        return sorted(self._open)

    @property
    def combinations(self) -> float:
        """Trials that a grid has; other samplers never end."""
        return math.prod(len(values) for values in self._grid.values()) if self._grid else math.inf

    def _combination(self, number: int) -> dict[str, Any]:
        """What a grid has for a trial: all its combinations, in an order of the seed."""
        index = int(np.random.default_rng(self.seed).permutation(int(self.combinations))[number])
        drawn = {}
        for name, values in self._grid.items():
            index, place = divmod(index, len(values))
            drawn[name] = values[place]
        return drawn

    def _known(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials there are, not copied: what is asked after every report must not cost seconds for hundreds."""
        return self.study.get_trials(deepcopy=False)

    def _waiting(self) -> int:
        """Trials that are there but were not handed out yet."""
        return sum(trial.state.name == "WAITING" for trial in self._known())

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """Of one trial: what it draws depends on the trials before it and not on stops between them."""
        from optuna import samplers

        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self._kind != "tpe":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that multivariate and constant_liar may change some day
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _note_end(self, known: "optuna.trial.FrozenTrial") -> None:
        trial = self._ended[known.number] = _as_trial(known)
        if trial.complete and (self._best is None or _rank(trial) > _rank(self._best)):
            self._best = trial

    @property
    def ended(self) -> int:
        """How many trials ended."""
        return len(self._ended)

    def trials(self) -> list[Trial]:
        """Those that ended, in order."""
        return [self._ended[number] for number in sorted(self._ended)]

    def seen(self) -> list[Trial]:
        """Those that ended or were interrupted, with what was seen of them."""
        states = ("COMPLETE", "PRUNED", "RUNNING")
        return [_as_trial(trial) for trial in self._known() if trial.state.name in states]

    def complete(self) -> list[Trial]:
        """Those that reached their end with scores."""
        return [trial for trial in self.trials() if trial.complete]

    def best(self) -> Trial | None:
        """The trial with the highest AP of those that reached their end, the first of equals; None if none did."""
        return self._best

    def pareto(self) -> list[Trial]:
        """Trials that no other one beats in all objectives, the highest AP first."""
        numbers = {trial.number for trial in self.study.best_trials}
        front = [trial for trial in self.complete() if trial.number in numbers]
        return sorted(front, key=lambda trial: -trial.scores["AP"])

    def is_default(self, trial: Trial) -> bool:
        """Whether a trial has the settings that are searched from."""
        return {**trial.settings} == _plain(settings_of(self.base, list(self.space)))

    def standing(self) -> str:
        """The best so far, for a progress line."""
        best = self.best()
        return f"best AP {best.scores['AP']:.4f} (trial {best.number})" if best else "no scores so far"

    def common_age(self) -> float:
        """Epochs after which every trial that was scored was evaluated, the most there are; 0 where nothing trains."""
        curves = [trial.curve for trial in self.trials() if trial.scores]
        return max(set.intersection(*(set(curve) for curve in curves)), default=0.0) if curves else 0.0

    def alike(self) -> list[tuple[Trial, float]]:
        """Trials that were scored, with AP at the age that all of them reached: those stopped early count, too."""
        age = self.common_age()
        return [(t, t.curve[age] if t.curve else t.scores["AP"]) for t in self.trials() if t.scores]

    def importance(self) -> dict[str, float]:
        """Share of each setting in how AP varies (at equal age), largest first; empty where the trials do not tell."""
        import optuna

        alike = {trial.number: ap for trial, ap in self.alike()}
        if len(alike) < MANY or len(set(alike.values())) < 2:
            return {}
        study = optuna.create_study(direction="maximize")
        for trial in self._known():
            if trial.number in alike:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=trial.params, distributions=trial.distributions, value=alike[trial.number]
                    )
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that many trials are alike
            return dict(optuna.importance.get_param_importances(study, evaluator=_forest(self.seed)))

    def default(self) -> Trial | None:
        """The trial of the settings that are searched from, if it reached its end."""
        return next((trial for trial in self.complete() if self.is_default(trial)), None)

    def experiment(self, trial: Trial) -> Experiment:
        """The experiment of a trial."""
        return apply(self.base, trial.settings, where=f"trial {trial.number}")

    def _fixed(self) -> dict[str, str]:
        """What the search does not vary, by dotted name; where it runs and is kept does not matter."""
        base = to_dict(apply(self.base, {}))  # written as those of trials are: 1 and 1.0 are one setting
        settings = {name: value for name, value in base.items() if name not in ("run", "scaling")}
        return {name: text for name, text in flatten(settings).items() if name not in self.space}

    def _check(self, about: Mapping[str, str]) -> None:
        known = self.study.user_attrs
        for name, value in about.items():
            if known.get(name, value) != value:
                raise ValueError(
                    f"{self.folder} holds a search of another {name}: it was {known[name]}, now it is {value}; "
                    "give the new search another --out"
                )
            self.study.set_user_attr(name, value)


def _forest(seed: int) -> "optuna.importance.BaseImportanceEvaluator":
    import optuna

    return optuna.importance.FanovaImportanceEvaluator(seed=seed)


def _as_trial(trial: "optuna.trial.FrozenTrial") -> Trial:
    known = trial.user_attrs
    return Trial(
        number=trial.number,
        settings=known.get("settings", {}),
        scores=known.get("scores", {}),
        reason=known.get("reason", ""),
        curve={float(epoch): ap for epoch, ap in known.get("curve", {}).items()},
        stopped=known.get("stopped"),
        run=known.get("run", ""),
    )


def _rank(trial: Trial) -> tuple[float, int]:
    """Higher for a better one, and for the first of equals."""
    return trial.scores["AP"], -trial.number


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from the study, whose storage keeps no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
