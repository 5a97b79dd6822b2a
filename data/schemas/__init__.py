"""Keypoint schemas: what the K keypoints of a data set or model are.

Doors: ``schema`` (the class), ``shipped`` (schemas that come with posefleet).
"""
