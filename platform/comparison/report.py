"""Compares finished runs, or the trainings of an ablation, and writes tables, a plot and an HTML page into a folder."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison import ablation, figures, html
from posefleet.platform.comparison import compare as comparison
from posefleet.platform.comparison.budget import folder_of
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.visualization.plots import save_png


def compare_runs(runs: Mapping[str, str], out: Path, *, data: str = "", about: str = "") -> str:
    """Score and time finished runs; write ``comparison.md``, ``.json``, ``.png`` and ``.html``.

    Args:
        runs: Name of a row -> folder of a run, checkpoint, or models:/ address.
        out: Folder of the files; made if it does not exist.
        data: Shards to score on; empty: those that each run was evaluated on.
        about: A sentence for the page on what is compared.

    Returns:
        The tables and the paths of the files, for the terminal.

    Raises:
        CheckpointError: There is no checkpoint.
        DataError: The shards cannot be used.
        ValueError: A run was not evaluated, and ``data`` is empty.
    """
    different = comparison.same_data({name: read_meta(find_checkpoint(run)).experiment for name, run in runs.items()})
    warnings = [f"Not the same conditions: {different}."] if different else []
    entries = comparison.score_runs(runs, LocalWorker(), data=data)
    if busy := comparison.busy_warning(entries):
        warnings.append(busy)
    differences = comparison.differences(entries)
    ap = {entry.name: entry.evaluation.ap for entry in entries}
    return _write(
        out,
        "comparison",
        text="\n\n".join([comparison.as_markdown(entries, differences), *warnings]),
        content=comparison.as_dict(entries),
        figure=figures.comparison_figure(ap, {entry.name: entry.cost.predict_ms for entry in entries}),
        page=lambda: html.render(entries, differences, about=about, warnings=warnings),
    )


def compare_rows(rows: Sequence[ablation.Row], trials: ablation.Trials, out: Path) -> str:
    """Score the trained rows of an ablation; write ``ablation.md``, ``.json``, ``.png`` and ``.html``.

    Args:
        rows: Rows of the ladder.
        trials: The experiments of every row and seed, trained to their end.
        out: Folder of the files; made if it does not exist.

    Returns:
        The tables and the paths of the files, for the terminal.
    """
    worker = LocalWorker()
    scores: dict[str, dict[int, dict[str, float]]] = {row.name: {} for row in rows}
    for (row, seed), (trained, decoded) in trials.items():
        scores[row][seed] = comparison.scores(folder_of(trained), decoded, worker)
    here = {row.name: [values["AP"] for values in scores[row.name].values()] for row in rows}
    orders = ablation.orderings_as_markdown(ablation.orderings(rows, scores))
    return _write(
        out,
        "ablation",
        text=f"{ablation.as_markdown(rows, scores)}\n\n{orders}",
        content=scores,
        figure=figures.ablation_figure(here, {row.name: row.paper["AP"] / 100 for row in rows}),
        page=lambda: _page_of_rows(trials, worker),
    )


def _page_of_rows(trials: ablation.Trials, worker: LocalWorker) -> str:
    """HTML page that compares the rows of the first seed."""
    entries, (_, first) = [], next(iter(trials))
    for (row, seed), (trained, decoded) in trials.items():
        if seed == first:
            sys.stderr.write(f"scoring and timing {row}\n")
            entries.append(comparison.score_run(row, folder_of(trained), worker, experiment=decoded))
    about = f"The rows of an ablation, all with seed {first}; ablation.md has every seed and the paper's numbers."
    return html.render(entries, comparison.differences(entries), about=about)


def _write(out: Path, name: str, *, text: str, content: object, figure: Figure, page: Callable[[], str]) -> str:
    """Write the four files, the page last, as it may take long; returns the tables and the paths of the files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n")
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    save_png(figure, out / f"{name}.png")
    (out / f"{name}.html").write_text(page())
    kinds = {"table": "md", "plot": "png", "page": "html"}
    return f"{text}\n\n" + "".join(f"  {kind:5}  {out / name}.{suffix}\n" for kind, suffix in kinds.items())
