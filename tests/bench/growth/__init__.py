"""How the platform's costs grow, for ``bench_growth.py``: what is measured, on what, and how it is shown."""
