"""A search: trials of settings in a folder, which can be stopped at any time and gone on with.

The trials are an Optuna study in ``study.log``. The first one is what is searched from, if the space holds it, so that
there is something to compare with; the others are drawn by Optuna (TPE). A trial that fails, because its settings
contradict each other or its numbers are not finite, is kept with its reason and costs nothing but itself.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posefleet.platform.comparison import table
from posefleet.platform.config import Experiment, to_dict, to_yaml
from posefleet.platform.progress import ProgressLine
from posefleet.platform.space import Space, apply, contains, settings_of, suggest
from posefleet.platform.tracking import flatten

if TYPE_CHECKING:
    import optuna

SHOWN = 10
"""Best trials in the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One set of settings and what came of it."""

    number: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float]
    """Statistics in [0, 1]; empty if it failed."""
    reason: str
    """Why it failed."""


class Search:
    """The trials of one folder."""

    def __init__(self, folder: Path, base: Experiment, space: Space, *, about: Mapping[str, str], seed: int) -> None:
        """
        Args:
            folder: Made if it is new.
            base: What is searched from.
            about: What the scores depend on beside base and space, such as the checkpoint. A search goes on only if all
                of these are what they were.
            seed: Of the draws.

        Raises:
            ValueError: The folder holds a search of something else.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.base, self.space, self.seed = folder, base, space, seed
        self._study = optuna.create_study(
            study_name="search",
            direction="maximize",
            storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
            load_if_exists=True,
        )
        varied = {name: str(domain) for name, domain in space.items()}
        self._check({**about, "space": json.dumps(varied), **self._fixed()})
        own = settings_of(base, list(space))
        if not self._study.trials and all(contains(domain, own[name]) for name, domain in space.items()):
            self._study.enqueue_trial({name: domain.drawn(own[name]) for name, domain in space.items()})

    def run(self, score: Callable[[Experiment], Mapping[str, float]], trials: int) -> None:
        """Try settings until there are so many trials; ``score`` gives statistics of an experiment, among them AP.

        What ``score`` raises as a ValueError is a failed trial, and so is an AP that is no number.
        """
        from optuna.trial import TrialState

        done, best = len(self.trials()), self.best()
        top = best.scores["AP"] if best else -math.inf
        with ProgressLine(trials, done=done) as progress:
            for number in range(done, trials):
                self._study.sampler = self._sampler(number)
                trial = self._study.ask()
                settings = suggest(trial, self.space)
                trial.set_user_attr("settings", settings)
                try:
                    scores = score(apply(self.base, settings, where=f"trial {trial.number}"))
                    if math.isnan(scores["AP"]):
                        raise ValueError("AP is no number")
                except ValueError as error:
                    trial.set_user_attr("reason", str(error))
                    self._study.tell(trial, state=TrialState.FAIL)
                else:
                    trial.set_user_attr("scores", dict(scores))
                    self._study.tell(trial, scores["AP"])
                    top = max(top, scores["AP"])
                progress.update(number + 1, f"best AP {top:.4f}" if top > -math.inf else "no scores so far")

    def _sampler(self, number: int) -> "optuna.samplers.TPESampler":
        """Of one trial: what it draws depends on the trials before it and not on stops between them."""
        import optuna

        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(seed), multivariate=True)

    def trials(self) -> list[Trial]:
        """Those that ended, in order."""
        ended = [trial for trial in self._study.trials if trial.state.is_finished()]
        return [
            Trial(
                number=trial.number,
                settings=trial.user_attrs.get("settings", {}),
                scores=trial.user_attrs.get("scores", {}),
                reason=trial.user_attrs.get("reason", "" if "scores" in trial.user_attrs else "it was interrupted"),
            )
            for trial in ended
        ]

    def best(self) -> Trial | None:
        """The trial with the highest AP, the first of equals; None where none has scores."""
        scored = [trial for trial in self.trials() if trial.scores]
        return max(scored, key=lambda trial: trial.scores["AP"], default=None)

    def importance(self) -> dict[str, float]:
        """Share of each setting in how AP varies, largest first; empty where the trials do not tell."""
        import optuna

        if len({trial.scores["AP"] for trial in self.trials() if trial.scores}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that many trials are alike
            return dict(optuna.importance.get_param_importances(self._study))

    def experiment(self, trial: Trial) -> Experiment:
        """The experiment of a trial."""
        return apply(self.base, trial.settings, where=f"trial {trial.number}")

    def write(self, remark: str = "") -> str:
        """Leave ``best.yaml``, ``trials.json`` and ``search.md`` in the folder; returns the last one's text.

        Args:
            remark: A sentence for the end of that text.

        Raises:
            ValueError: No trial ended with scores.
        """
        best, trials = self.best(), self.trials()
        if best is None:
            reasons = "\n".join(f"  trial {trial.number}: {trial.reason}" for trial in trials)
            raise ValueError(f"no trial ended with scores:\n{reasons}")
        (self.folder / "best.yaml").write_text(to_yaml(self.experiment(best)))
        listed = [{"trial": t.number, "settings": t.settings, "scores": t.scores, "reason": t.reason} for t in trials]
        (self.folder / "trials.json").write_text(json.dumps(listed, indent=1) + "\n")
        text = "\n\n".join(filter(None, [self._as_markdown(trials), remark]))
        (self.folder / "search.md").write_text(text + "\n")
        return text

    def _fixed(self) -> dict[str, str]:
        """What the search does not vary, by dotted name; where it runs and is kept does not matter."""
        base = to_dict(apply(self.base, {}))  # written as those of trials are: 1 and 1.0 are one setting
        settings = {name: value for name, value in base.items() if name not in ("run", "scaling")}
        return {name: text for name, text in flatten(settings).items() if name not in self.space}

    def _check(self, about: Mapping[str, str]) -> None:
        known = self._study.user_attrs
        for name, value in about.items():
            if known.get(name, value) != value:
                raise ValueError(
                    f"{self.folder} holds a search of another {name}: it was {known[name]}, now it is {value}; "
                    "give the new search another --out"
                )
            self._study.set_user_attr(name, value)

    def _as_markdown(self, trials: list[Trial]) -> str:
        scored = sorted((t for t in trials if t.scores), key=lambda t: -t.scores["AP"])
        shown = scored[:SHOWN]
        if trials[0].scores and trials[0] not in shown:
            shown.append(trials[0])  # what was searched from
        names = list(self.space)
        rows = [
            [f"{t.number}", f"{t.scores['AP']:.4f}", f"{t.scores['AP50']:.4f}", *(_text(t.settings[n]) for n in names)]
            for t in shown
        ]
        failed = [t for t in trials if not t.scores]
        lines = [table(["trial", "AP", "AP50", *names], rows), "", f"{len(trials)} trials, {len(failed)} failed."]
        lines += [f"- trial {t.number} failed: {t.reason.splitlines()[-1].strip()}" for t in failed[:SHOWN]]
        if found := self.importance():
            lines += [
                "",
                "Share in how AP varies: " + ", ".join(f"{n} {share:.0%}" for n, share in found.items()) + ".",
            ]
        return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
