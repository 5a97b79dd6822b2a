"""Renders a comparison as one HTML page that needs no other file and no network: tables, figures, example images.

The Jinja template, its style sheet and its script are in ``pages/``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2

from posefleet.data.evaluation.bootstrap import CONFIDENCE
from posefleet.data.evaluation.error_analysis import ERROR_KINDS
from posefleet.data.evaluation.evaluate import STATISTICS
from posefleet.platform.comparison import gallery
from posefleet.platform.comparison.compare import (
    BOXES_A_PERSON,
    Differences,
    Entry,
    differing_settings,
    losses_table,
    ranked,
)
from posefleet.platform.comparison.figures import comparison_halves, series_colours
from posefleet.platform.visualization import plots, report
from posefleet.platform.visualization.html import environment

NOTHING = "–"
"""Shown for a number that is missing."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of every run: a row or a column of a table."""

    name: str
    values: list[float]
    low_is_good: bool = False
    digits: int = 3
    """Decimals that are shown."""

    def is_best(self, value: float) -> bool:
        """Whether ``value``, to three digits, is the best one; no value is where all are equal or only one is known."""
        known = {round(value, 3) for value in self.values if not math.isnan(value)}
        return len(known) > 1 and round(value, 3) == (min(known) if self.low_is_good else max(known))


def render(entries: Sequence[Entry], minus: Differences, *, about: str = "", warnings: Sequence[str] = ()) -> str:
    """The page as text.

    Args:
        entries: At least one; names are distinct.
        minus: From :func:`posefleet.platform.comparison.compare.differences`.
        about: A sentence on what is compared.
        warnings: Sentences on why the runs cannot be compared.

    Raises:
        DataError: An image that is shown cannot be read.
    """
    entries = ranked(entries)
    ap = {entry.name: entry.evaluation.ap for entry in entries}
    titles = "AP of every run", "Milliseconds of predicting one image, by people in it"
    halves = comparison_halves(ap, {entry.name: entry.cost.predict_ms for entry in entries})
    images: list[gallery.GalleryImage] = []
    if len({(entry.data, entry.experiment.keypoints) for entry in entries}) == 1:
        chosen = gallery.choose([entry.evaluation.image_oks for entry in entries])
        images = gallery.draw(chosen, {entry.name: entry.poses for entry in entries}, entries[0].experiment)
    else:
        reason = "The runs were not scored on the same images, so differences and example images are left out."
        warnings = [*warnings, reason]
    settings = differing_settings({entry.name: entry.experiment for entry in entries})
    best, *others = ap
    known = {name: minus[best, name].certain for name in others if (best, name) in minus}
    return (
        _environment()
        .get_template("comparison.html")
        .render(
            about=about,
            warnings=warnings,
            written=f"{datetime.now():%Y-%m-%d %H:%M}",
            entries=entries,
            names=list(ap),
            colours=series_colours(ap),
            ahead=[name for name, certain in known.items() if certain],
            maybe_ahead=[name for name, certain in known.items() if not certain],
            minus=minus,
            confidence=CONFIDENCE,
            figures={
                title: {"light": plots.svg_bytes(figure), "dark": plots.svg_bytes(figure, dark=True)}
                for title, figure in zip(titles, halves, strict=True)
            },
            statistics=[Measure(key, [entry.evaluation.statistics[key] for entry in entries]) for key in STATISTICS],
            costs=_costs(entries),
            losses=[Measure(name, values, digits=0) for name, values in losses_table(entries).items()],
            keypoints=_keypoints(entries),
            errors=_errors(entries),
            common_settings={name: values for name, values in settings.items() if len(values) == len(entries)},
            own_settings={name: values for name, values in settings.items() if len(values) < len(entries)},
            images=images,
            drawn_from=report.DRAWN_FROM,
            nothing=NOTHING,
        )
    )


def _costs(entries: Sequence[Entry]) -> list[Measure]:
    columns = [entry.cost.columns() for entry in entries]
    costs = [Measure(name, [c[name][0] for c in columns], digits=digits) for name, (_, digits) in columns[0].items()]
    boxes = [e.evaluation.boxes.per_person if e.evaluation.boxes else math.nan for e in entries]
    return costs if all(map(math.isnan, boxes)) else [*costs, Measure(BOXES_A_PERSON, boxes, digits=2)]


def _keypoints(entries: Sequence[Entry]) -> list[Measure]:
    """AP of each keypoint; NaN for a run whose schema lacks it."""
    found = [dict(zip(e.evaluation.keypoints, e.evaluation.keypoint_ap.tolist(), strict=True)) for e in entries]
    names = dict.fromkeys(name for values in found for name in values)
    return [Measure(name.replace("_", " "), [values.get(name, math.nan) for values in found]) for name in names]


def _errors(entries: Sequence[Entry]) -> list[Measure]:
    """Shares of every kind of error; see ``Evaluation.as_dict``."""
    kinds = {
        **{f"keypoints: {kind}": f"errors/{kind}" for kind in ERROR_KINDS},
        "people missed": "errors/missed_people",
        "poses on background": "errors/background_poses",
        "poses that are duplicates": "errors/duplicate_poses",
    }
    metrics = [entry.evaluation.as_dict() for entry in entries]
    return [Measure(name, [m[key] for m in metrics], low_is_good=key != "errors/good") for name, key in kinds.items()]


# ------------------------------------------------------------------------------------------------ filters of the page


def _environment() -> jinja2.Environment:
    found = environment(Path(__file__).parent / "pages")
    filters = (_number, _signed, _percent, _share, _setting)
    found.filters |= {function.__name__.removeprefix("_"): function for function in filters}
    return found


def _number(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float, digits: int = 1) -> str:
    return _number(100 * value, digits)


def _share(value: float) -> str:
    """A number in [0, 1] for a style sheet."""
    return "0" if math.isnan(value) else f"{min(max(value, 0.0), 1.0):.3f}"


def _setting(text: str) -> str:
    """Fractions to six digits: 0.111111 for 0.1111111111111111."""
    try:
        return f"{float(text):.6g}" if "." in text else text
    except ValueError:
        return text
