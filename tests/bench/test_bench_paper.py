"""The page of the papers' recipes computes what it says."""

from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent / "bench"


def test_recipes_come_to_what_a_calculator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_paper as bench

    experiment = bench.recipe("logocap")
    assert bench.side(experiment) == 512  # its crop
    step = bench.Step(
        parameters=36e6, pixels=512, training_flops=1e12, gradient_bytes=144e6, weight_bytes=1.0, state_bytes=1.0
    )
    images, epochs, flops, hours, speed, cores, read, gradients, days = (
        float(value) for value in bench.computed(experiment, step, decode=0.004, utilisation=0.1)
    )
    assert (images, epochs) == (96, 140)
    assert speed == 99  # 0.1 x 989e12 / 1e12
    assert flops == pytest.approx(140 * 56599 * 1e12 / 1e18, abs=0.05)
    assert hours == pytest.approx(140 * 56599 / 98.9 / 3600, abs=0.5)
    assert cores == 0.4 and read == 16  # 98.9 x 0.004, 98.9 x 163 kB
    assert gradients == pytest.approx(98.9 * 8 / 96 * 1.75 * 0.144, abs=0.05)  # steps/s x bytes of a ring
    assert days == pytest.approx(1e9 / 98.9 / 86400, abs=0.5)
