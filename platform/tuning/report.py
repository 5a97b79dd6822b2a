"""The report of a search: a table, all trials, the best one as a config, and figures."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from posefleet.data.evaluation.bootstrap import CONFIDENCE, difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.platform.config.loading import to_yaml
from posefleet.platform.tuning import plots as search_plots
from posefleet.platform.tuning.space import Range
from posefleet.platform.tuning.study import Search, Trial
from posefleet.platform.visualization.plots import save_png
from posefleet.platform.visualization.tables import table

SHOWN = 10
"""Number of best trials in the table, and of failures listed under it."""


class NoResult(ValueError):
    """No trial of a search is complete; the message gives the reason of each."""


def log_search(search: Search, remark: str = "") -> str:
    """Write ``best.yaml``, ``trials.json``, ``search.md`` and figures into the search's folder; return ``search.md``.

    Args:
        search: A search with at least one trial that ended.
        remark: Text at the end of ``search.md``.

    Raises:
        NoResult: No trial is complete.
    """
    best, trials = search.best(), search.trials()
    if best is None:
        reasons = "\n".join(f"  trial {trial.number}: {trial.reason or 'it was stopped early'}" for trial in trials)
        raise NoResult(f"no trial ended with scores:\n{reasons}")
    (search.folder / "best.yaml").write_text(to_yaml(search.experiment(best)))
    (search.folder / "trials.json").write_text(json.dumps([_as_dict(trial) for trial in trials], indent=1) + "\n")
    importance = search.importance()
    text = "\n\n".join(filter(None, [_as_markdown(search, importance), remark]))
    (search.folder / "search.md").write_text(text + "\n")
    for name, figure in _figures(search, importance):
        save_png(figure, search.folder / name)
    return text


def gain(best: Evaluation, own: Evaluation, other: str) -> str:
    """Sentence on the gain in AP of the best settings over ``other``, and whether it exceeds noise on these images."""
    if best.matches is None or own.matches is None:
        return ""
    found = difference(best.matches, own.matches)
    certainty = "more than noise" if found.certain else "may be noise"
    return (
        f"Best against {other}: AP {found}, {certainty}; in brackets {CONFIDENCE:.0%} of draws of images. "
        "It was chosen on these images, so expect less on others."
    )


def report_files(folder: Path) -> list[Path]:
    """The files that :func:`log_search` wrote into a folder."""
    return sorted(
        p for p in folder.iterdir() if p.name in ("best.yaml", "trials.json", "search.md") or p.suffix == ".png"
    )


def _as_markdown(search: Search, importance: Mapping[str, float]) -> str:
    """A table of the best trials and the default, then failures with their reasons, and the importance of settings."""
    trials, names = search.trials(), list(search.space)
    best = sorted(search.complete(), key=lambda trial: -trial.scores["AP"])[:SHOWN]
    shown = search.pareto() if len(search.objectives) > 1 else best
    shown += [trial for trial in trials if search.is_default(trial) and trial.scores and trial not in shown][:1]
    scores = list(dict.fromkeys((*search.objectives, "AP", "AP50")))
    epochs = any(trial.curve for trial in shown)
    rows = [
        [
            f"{t.number}{' (the default)' if search.is_default(t) else ''}",
            *(_number(t.scores.get(name)) for name in scores),
            *([f"{max(t.curve):.3g}" if t.curve else ""] if epochs else []),
            *(_text(t.settings[n]) for n in names),
        ]
        for t in shown
    ]
    failed, stopped = [t for t in trials if not t.scores], [t for t in trials if t.stopped is not None]
    lines = [table(["trial", *scores, *(["epochs"] if epochs else []), *names], rows), ""]
    early = f"{len(stopped)} stopped early, " if epochs else ""
    lines += [f"{len(trials)} trials, {early}{len(failed)} failed."]
    lines += [f"- trial {t.number} failed: {t.reason.splitlines()[-1].strip()}" for t in failed[:SHOWN]]
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        lines += ["", f"Share in how {_about(search)} varies: {shares}."]
    return "\n".join(lines)


def _figures(search: Search, importance: Mapping[str, float]) -> Iterator[tuple[str, Figure]]:
    trials, default = search.trials(), search.default()
    scored, line = [t for t in trials if t.scores], default.scores["AP"] if default else None
    yield "history.png", search_plots.history(scored, line)
    if any(len(trial.curve) > 1 for trial in trials):
        yield "curves.png", search_plots.curves([t for t in trials if t.curve], line)
    if importance:
        yield "importance.png", search_plots.importance_bars(importance, _about(search))
    aps = search.aps_at_common_age()
    if len(search.space) > 1 and len(aps) > 1:
        settings = [{name: _number_or_text(trial.settings[name]) for name in search.space} for trial, _ in aps]
        logs = [name for name, domain in search.space.items() if isinstance(domain, Range) and domain.log]
        yield "parallel.png", search_plots.parallel(settings, [ap for _, ap in aps], _about(search), logs)
    for cost in search.objectives:
        if cost != "AP" and search.complete():
            yield f"pareto_{cost}.png", search_plots.pareto(search.complete(), search.pareto(), cost, default)


def _about(search: Search) -> str:
    age = search.common_age()
    return f"AP after {age:.3g} epochs" if age else "AP"


def _number_or_text(value: Any) -> float | str:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def _as_dict(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "settings": dict(trial.settings),
        "scores": dict(trial.scores),
        "reason": trial.reason,
        "epochs": max(trial.curve, default=None),
        "stopped": trial.stopped,
        "run": trial.run,
    }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value < 10 else f"{value:.4g}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
