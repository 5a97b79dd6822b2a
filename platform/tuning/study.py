"""The study of a search: its trials, kept in a folder, so that a search can be stopped at any time and resumed.

The trials are an Optuna study in ``study.log``, which alone decides how a search goes on. A runner, sequential
(:meth:`Search.run`) or parallel (``ray_tuner``), asks for the settings of a trial and reports its scores. Trial 0 has
the settings of the base experiment, if the space includes them, to compare the others with. A trial that fails, because
its settings contradict each other or its scores are not finite, is kept with its reason, and the search goes on. An
interrupted trial is handed out again before new ones are drawn.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_dict
from posefleet.platform.runtime.progress import ProgressLine
from posefleet.platform.tracking.runs import flatten
from posefleet.platform.tuning.space import Space, apply, contains, grid, settings_of, suggest

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
"""How settings are drawn: tpe by a model of the trials so far, random without one, grid each combination once."""

DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "AP": "maximize",
    "parameters": "minimize",
    "gflops": "minimize",
    "predict_ms": "minimize",
}
"""Objectives of a search: scores of a trial, and whether higher or lower is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The settings of a trial and its results."""

    number: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float] = field(default_factory=dict)
    """Statistics in [0, 1] and costs by name; empty if it failed."""
    reason: str = ""
    """Why it failed; empty if it did not."""
    curve: Mapping[float, float] = field(default_factory=dict)
    """AP by number of epochs trained; empty where nothing is trained."""
    stopped: float | None = None
    """Epochs after which it was stopped early, as other trials were better; None if it was not."""
    run: str = ""
    """Folder of its run; empty where it has none."""

    @property
    def complete(self) -> bool:
        """Whether it ran to its end and has scores."""
        return bool(self.scores) and self.stopped is None


FEWEST_FOR_IMPORTANCE = 4
"""Number of scored trials from which on the importance of settings is estimated."""


class Search:
    """The trials of one folder: hands out settings and keeps results."""

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
            folder: Folder of the search; made if it does not exist.
            base: Experiment whose settings are varied.
            space: The settings that vary, and their values.
            about: What the scores depend on beside base and space, such as the checkpoint. A search can be resumed only
                with the same values.
            seed: Seed of the draws.
            sampler: How settings are drawn.
            objectives: Scores to optimise, see ``DIRECTIONS``; with several, the best trials are the Pareto front.

        Raises:
            ValueError: The folder holds another search, an objective is unknown, or a grid is infinite.
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
        self._check_unchanged({**about, "space": json.dumps(varied), **self._fixed()})
        own = settings_of(base, list(space))
        first = not self._known() and sampler != "grid"
        if first and all(contains(domain, own[name]) for name, domain in space.items()):
            self.study.enqueue_trial({name: domain.drawn(own[name]) for name, domain in space.items()})
        self._interrupted = [trial for trial in self._known() if trial.state.name == "RUNNING"]
        self._open: dict[int, optuna.trial.Trial] = {}
        self._ended: dict[int, Trial] = {}  # kept here, as reading the study after every evaluation is slow
        self._best: Trial | None = None
        for trial in self._known():
            if trial.state.is_finished():
                self._note_end(trial)

    def run(self, score: Callable[[Experiment], Mapping[str, float]], trials: int) -> None:
        """Run trials one after the other until there are ``trials``.

        ``score`` returns the statistics of an experiment, among them AP. A trial fails if ``score`` raises a ValueError
        or AP is NaN.
        """
        with ProgressLine(trials, done=self.ended) as progress:
            while trial := self.ask(trials):
                try:
                    self.finish(trial.number, score(apply(self.base, trial.settings, where=f"trial {trial.number}")))
                except ValueError as error:
                    self.fail(trial.number, str(error))
                progress.update(self.ended, self.standing())

    def ask(self, limit: int) -> Trial | None:
        """Hand out the next trial: an interrupted one, else a new one; None when there are ``limit`` trials."""
        import optuna

        if self._interrupted:
            known = self._interrupted.pop(0)
            trial = optuna.trial.Trial(self.study, known._trial_id)
        elif (number := len(self._known()) - self._waiting()) < min(limit, self.combinations):
            self.study.sampler = self._sampler(number)
            if (
                self._grid and not self._waiting()
            ):  # Optuna's GridSampler stops a study.optimize loop; there is none here
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
        """Record an evaluation of a running trial, the folder of its run, and the settings that it has now."""
        trial = self._open[number]
        curve = {**trial.user_attrs.get("curve", {}), f"{epoch:.6g}": scores["AP"]}
        known = {"curve": curve, "run": run, "latest": dict(scores), "settings": dict(settings)}
        for name, value in known.items():
            trial.set_user_attr(name, value)

    def finish(self, number: int, scores: Mapping[str, float]) -> None:
        """Record the scores of a trial that ran to its end.

        Raises:
            ValueError: One of the objectives is NaN; the trial is still open.
        """
        values = [scores[name] for name in self.objectives]
        for name, value in zip(self.objectives, values, strict=True):
            if math.isnan(value):
                raise ValueError(f"{name} is not a number")
        trial = self._open.pop(number)
        trial.set_user_attr("scores", dict(scores))
        self._note_end(self.study.tell(trial, values))

    def stop(self, number: int, epoch: float) -> None:
        """Record that a trial was stopped after ``epoch`` epochs, as others were better by then."""
        from optuna.trial import TrialState

        trial = self._open.pop(number)
        scores = trial.user_attrs["latest"]
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("stopped", epoch)
        if len(self.objectives) == 1:
            trial.report(
                scores["AP"], round(1000 * epoch)
            )  # the sampler compares trials that were stopped at the same epoch
        self._note_end(self.study.tell(trial, state=TrialState.PRUNED))

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial failed, and why."""
        from optuna.trial import TrialState

        trial = self._open.pop(number)
        trial.set_user_attr("reason", reason)
        self._note_end(self.study.tell(trial, state=TrialState.FAIL))

    @property
    def running(self) -> list[int]:
        """Numbers of the trials that were handed out and have not ended."""
        return sorted(self._open)

    @property
    def combinations(self) -> float:
        """Number of trials of a grid; infinite for other samplers."""
        return math.prod(len(values) for values in self._grid.values()) if self._grid else math.inf

    def _combination(self, number: int) -> dict[str, Any]:
        """The settings of a grid's trial: the combinations are shuffled by the seed."""
        index = int(np.random.default_rng(self.seed).permutation(int(self.combinations))[number])
        drawn = {}
        for name, values in self._grid.items():
            index, place = divmod(index, len(values))
            drawn[name] = values[place]
        return drawn

    def _known(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials, not copied: copying hundreds of them after every report takes seconds."""
        return self.study.get_trials(deepcopy=False)

    def _waiting(self) -> int:
        """Number of enqueued trials that were not handed out yet."""
        return sum(trial.state.name == "WAITING" for trial in self._known())

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """The sampler of one trial; its draws depend on the trials before it, not on interruptions between them."""
        from optuna import samplers

        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self._kind != "tpe":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna marks multivariate and constant_liar as experimental
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _note_end(self, known: "optuna.trial.FrozenTrial") -> None:
        trial = self._ended[known.number] = _as_trial(known)
        if trial.complete and (self._best is None or _rank(trial) > _rank(self._best)):
            self._best = trial

    @property
    def ended(self) -> int:
        """Number of trials that ended."""
        return len(self._ended)

    def trials(self) -> list[Trial]:
        """Trials that ended, in order."""
        return [self._ended[number] for number in sorted(self._ended)]

    def seen(self) -> list[Trial]:
        """Trials that ended or were interrupted, with their evaluations so far; failed ones are left out."""
        states = ("COMPLETE", "PRUNED", "RUNNING")
        return [_as_trial(trial) for trial in self._known() if trial.state.name in states]

    def complete(self) -> list[Trial]:
        """Trials that ran to their end and have scores."""
        return [trial for trial in self.trials() if trial.complete]

    def best(self) -> Trial | None:
        """The complete trial with the highest AP, the first of equals; None if no trial is complete."""
        return self._best

    def pareto(self) -> list[Trial]:
        """Trials of the Pareto front: no other trial is better in all objectives; highest AP first."""
        numbers = {trial.number for trial in self.study.best_trials}
        front = [trial for trial in self.complete() if trial.number in numbers]
        return sorted(front, key=lambda trial: -trial.scores["AP"])

    def is_default(self, trial: Trial) -> bool:
        """Whether a trial has the settings of the base experiment."""
        own = settings_of(self.base, list(self.space))
        stored: dict[str, Any] = json.loads(json.dumps(own))  # the study's storage turns tuples into lists
        return {**trial.settings} == stored

    def standing(self) -> str:
        """The best AP so far, for a progress line."""
        best = self.best()
        return f"best AP {best.scores['AP']:.4f} (trial {best.number})" if best else "no scores so far"

    def common_age(self) -> float:
        """Largest number of epochs after which every scored trial was evaluated; 0 where nothing is trained."""
        curves = [trial.curve for trial in self.trials() if trial.scores]
        return max(set.intersection(*(set(curve) for curve in curves)), default=0.0) if curves else 0.0

    def aps_at_common_age(self) -> list[tuple[Trial, float]]:
        """Scored trials, also those stopped early, each with its AP at :meth:`common_age`."""
        age = self.common_age()
        return [(t, t.curve[age] if t.curve else t.scores["AP"]) for t in self.trials() if t.scores]

    def importance(self) -> dict[str, float]:
        """Share of each setting in the variance of AP at :meth:`common_age` (fANOVA), largest first.

        Empty with fewer than ``FEWEST_FOR_IMPORTANCE`` scored trials, or if all have the same AP.
        """
        import optuna

        aps = {trial.number: ap for trial, ap in self.aps_at_common_age()}
        if len(aps) < FEWEST_FOR_IMPORTANCE or len(set(aps.values())) < 2:
            return {}
        study = optuna.create_study(direction="maximize")
        for trial in self._known():
            if trial.number in aps:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=trial.params, distributions=trial.distributions, value=aps[trial.number]
                    )
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fANOVA warns of many equal trials
            return dict(
                optuna.importance.get_param_importances(
                    study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
                )
            )

    def default(self) -> Trial | None:
        """The complete trial with the settings of the base experiment; None if there is none."""
        return next((trial for trial in self.complete() if self.is_default(trial)), None)

    def experiment(self, trial: Trial) -> Experiment:
        """The base experiment with the settings of a trial."""
        return apply(self.base, trial.settings, where=f"trial {trial.number}")

    def _fixed(self) -> dict[str, str]:
        """Settings that the search does not vary, by dotted name, without those of ``run`` and ``scaling``."""
        base = to_dict(apply(self.base, {}))  # built as those of trials are, so that 1 and 1.0 are equal
        settings = {name: value for name, value in base.items() if name not in ("run", "scaling")}
        return {name: text for name, text in flatten(settings).items() if name not in self.space}

    def _check_unchanged(self, about: Mapping[str, str]) -> None:
        """Compare with what the folder's search is about; write it down if the search is new."""
        known = self.study.user_attrs
        for name, value in about.items():
            if known.get(name, value) != value and self._reread(name, known[name]) != value:
                raise ValueError(
                    f"{self.folder} holds a search of another {name}: it was {known[name]}, now it is {value}; "
                    "give the new search another --out"
                )
            self.study.set_user_attr(name, value)

    def _reread(self, name: str, text: str) -> str:
        """The text of a stored setting as it is written now: an earlier version may have had another word for it."""
        if "." not in name:
            return text
        try:
            return flatten(to_dict(apply(self.base, {name: yaml.safe_load(text)}))).get(name, text)
        except (ValueError, yaml.YAMLError):
            return text


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
    """Higher for a better trial, and for the first of equals."""
    return trial.scores["AP"], -trial.number
