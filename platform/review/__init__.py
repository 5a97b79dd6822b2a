"""Predicts each part of a data set with a model that did not see it, and shows the labels that it makes improbable.

Doors: ``folds`` (parts, trainings, predictions), ``report`` (page, list and tasks).
"""
