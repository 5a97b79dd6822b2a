"""Finds what is wrong with a data set before training does.

Doors: ``examine`` (run all checks), ``findings`` (the report). Command: ``python -m posefleet.data.doctor``."""
