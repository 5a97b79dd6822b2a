"""The benchmark of growth measures what it says: every measure at a size that takes no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench"
SMALL = {"samples": 40, "counts": 3}


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def test_every_measure_runs(tmp_path: Path) -> None:
    from growth import measures

    for name, measure in measures.MEASURES.items():
        size = SMALL[measure.axis]
        measure.prepare(tmp_path / name, size)
        measures.quietly(measure.begin(tmp_path / name, size))


@pytest.mark.slow
def test_sizes_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    options = ["--measure", "truth", "--sizes", "20", "20000", "--json", str(tmp_path / "numbers.json")]
    done = subprocess.run(
        [sys.executable, str(BENCH / "bench_growth.py"), *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads((tmp_path / "numbers.json").read_text())
    assert (small["size"], large["size"]) == (20, 20_000) and small["cpu"] < large["cpu"]
    assert small["before"] < 2 * large["before"] and large["peak"] >= large["before"]
    assert "| ground truth (`truth`) | 20 |" in done.stdout


def test_growth_is_the_exponent() -> None:
    from growth.points import Point, exponent, figure, table

    points = [Point("shard", 10, 1.0, 0.5, 100.0, 110.0), Point("shard", 1000, 9.0, 50.0, 100.0, 300.0)]
    assert exponent(*points) == pytest.approx(1.0)  # a hundred times the size, a hundred times the CPU seconds
    last = table(points).splitlines()[-1]
    assert "200,000" in last and last.endswith("| 1.00 |")  # 200 MB more for 1000 images
    assert [len(axes.lines) for axes in figure(points).axes] == [1, 2, 0]
