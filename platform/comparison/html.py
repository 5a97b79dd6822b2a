"""A comparison as one HTML page that needs no other file and no network: tables, plots, the same images for every run.

What it looks like is in ``pages/``: a Jinja template, its style sheet, and the few lines that sort its tables.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2

from posefleet.data.evaluation.bootstrap import CONFIDENCE, Interval
from posefleet.data.evaluation.error_analysis import ERROR_KINDS
from posefleet.data.evaluation.evaluate import STATISTICS
from posefleet.platform.comparison import figures as comparison_figures
from posefleet.platform.comparison import gallery
from posefleet.platform.comparison.compare import Entry, differing_settings, ranked
from posefleet.platform.inference.latency import CROWDS
from posefleet.platform.visualization import plots, report

PAGES = Path(__file__).parent / "pages"
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Measure:
    """A row that has a number for every run."""

    name: str
    values: list[float]
    low_is_good: bool = False

    @property
    def best(self) -> float | None:
        """The best value, to the three digits that are shown; None where that says nothing."""
        known = {round(value, 3) for value in self.values if not math.isnan(value)}
        if len(known) < 2:
            return None
        return min(known) if self.low_is_good else max(known)

    def is_best(self, value: float) -> bool:
        """Whether ``value`` is shown as the best one of its row."""
        return round(value, 3) == self.best


def render(
    entries: Sequence[Entry],
    minus: Mapping[tuple[str, str], Interval],
    *,
    about: str = "",
    warnings: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        entries: At least one; names are distinct.
        minus: What :func:`posefleet.platform.comparison.compare.differences` found.
        about: A sentence on what is compared.
        warnings: Sentences on why the runs do not compare.

    Raises:
        DataError: The images that are shown cannot be read.
    """
    entries = ranked(entries)
    ap = {entry.name: entry.evaluation.ap for entry in entries}
    times = {entry.name: entry.cost.predict_ms for entry in entries}
    figures = {
        "AP of every run": comparison_figures.ap_bars(ap),
        "Milliseconds of predicting one image, by people in it": comparison_figures.time_curves(ap, times),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_number, _signed, _percent, _share, _setting, _jpeg)
    environment.filters |= {function.__name__.strip("_"): function for function in filters}
    settings = differing_settings({entry.name: entry.experiment for entry in entries})
    return environment.get_template("comparison.html").render(
        about=about,
        warnings=[*warnings, *_other_images(entries)],
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        entries=entries,
        names=[entry.name for entry in entries],
        colours=comparison_figures.series_colours(ap),
        statistics=[Measure(key, [entry.evaluation.statistics[key] for entry in entries]) for key in STATISTICS],
        verdict=_verdict(entries, minus),
        minus=minus,
        confidence=CONFIDENCE,
        figures={
            title: {"light": _svg(plots.svg_bytes(figure)), "dark": _svg(plots.svg_bytes(figure, dark=True))}
            for title, figure in figures.items()
        },
        keypoints=_keypoints(entries),
        errors=_errors(entries),
        crowds=CROWDS,
        common_settings={name: values for name, values in settings.items() if len(values) == len(entries)},
        own_settings={name: values for name, values in settings.items() if len(values) < len(entries)},
        pictures=_pictures(entries),
        drawn_from=report.DRAWN_FROM,
        nothing=NOTHING,
    )


def _verdict(entries: Sequence[Entry], minus: Mapping[tuple[str, str], Interval]) -> dict[str, list[str]]:
    """Runs that the best one leads by more than noise, and those that it may not lead; empty for one run."""
    best, *others = (entry.name for entry in entries)
    known = {name: minus[best, name].certain for name in others if (best, name) in minus}
    return (
        {
            "sure": [name for name, certain in known.items() if certain],
            "unsure": [name for name, certain in known.items() if not certain],
        }
        if known
        else {}
    )


def _other_images(entries: Sequence[Entry]) -> list[str]:
    if _same_images(entries):
        return []
    return ["The runs were not scored on the same images, so there are no differences and no pictures of them all."]


def _same_images(entries: Sequence[Entry]) -> bool:
    return len({(entry.data, entry.experiment.schema) for entry in entries}) == 1


def _pictures(entries: Sequence[Entry]) -> list[gallery.GalleryImage]:
    if not _same_images(entries):
        return []
    chosen = gallery.choose([entry.evaluation.image_oks for entry in entries])
    return gallery.draw(chosen, {entry.name: entry.poses for entry in entries}, entries[0].experiment)


def _keypoints(entries: Sequence[Entry]) -> list[Measure]:
    """AP of each keypoint; runs of another schema lack those of the others."""
    found = [dict(zip(e.evaluation.keypoints, e.evaluation.keypoint_ap.tolist(), strict=True)) for e in entries]
    names = dict.fromkeys(name for values in found for name in values)
    return [Measure(name.replace("_", " "), [values.get(name, math.nan) for values in found]) for name in names]


def _errors(entries: Sequence[Entry]) -> list[Measure]:
    """The error split, in shares; see ``Evaluation.as_dict``."""
    kinds = {
        **{f"keypoints: {kind}": f"errors/{kind}" for kind in ERROR_KINDS},
        "people missed": "errors/missed_people",
        "poses on background": "errors/background_poses",
        "poses that are duplicates": "errors/duplicate_poses",
    }
    numbers = [entry.evaluation.as_dict() for entry in entries]
    return [
        Measure(name, [values[key] for values in numbers], low_is_good=key != "errors/good")
        for name, key in kinds.items()
    ]


# ---------------------------------------------------------------------------------------------------- as text


def _number(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float, digits: int = 1) -> str:
    return _number(100 * value, digits)


def _share(value: float) -> str:
    """For a style sheet: a number in [0, 1]."""
    return "0" if math.isnan(value) else f"{min(max(value, 0.0), 1.0):.3f}"


def _setting(text: str) -> str:
    """Fractions to six digits: 0.111111 for 0.1111111111111111."""
    try:
        return f"{float(text):.6g}" if "." in text else text
    except ValueError:
        return text


def _jpeg(data: bytes) -> str:
    return _data_uri(data, "image/jpeg")


def _svg(data: bytes) -> str:
    return _data_uri(data, "image/svg+xml")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
