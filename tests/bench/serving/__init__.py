"""The parts of bench_serve.py."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS / "support")]  # server.py, which starts servers for tests, starts them here, too
