"""Searches for settings: the space, the study of trials, trials on Ray Tune, decoding without training, the report.

Doors: ``space`` (``build_space``), ``study`` (``Search``), ``ray_tuner`` (``SearchConfig``, ``train_trials``),
``decoding`` (``Redecoder``), ``report`` (``log_search``, ``gain``).
"""
