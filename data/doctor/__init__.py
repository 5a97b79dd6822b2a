"""Finds what is wrong with a data set before training does.

Doors: ``examine`` (run all checks), ``report`` (what it finds). Command: ``posefleet doctor``."""
