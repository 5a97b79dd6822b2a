"""Searches for settings: the space, the study of trials, trials on Ray Tune, decoding without training, the report.

Doors: ``space`` (``build_space``), ``study`` (``Search``), ``ray_tuner`` (``SearchConfig``, ``run_search``),
``decoding`` (``Redecoder``), ``report`` (``log_search``, ``report_files``).
"""
