"""Finds what is wrong with a data set before training does.

Doors: ``examine`` (run all checks), ``findings`` (the checks and the report). Command: ``posefleet doctor``."""
