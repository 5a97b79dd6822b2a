"""Keypoint schemas: what the K keypoints of a data set or model are.

Doors: ``schema`` (the class, and its form as plain values), ``shipped`` (schemas that come with posefleet, one YAML
file each in ``files/``, and what a setting means), ``category`` (the schema in an annotation file), ``names`` (sides,
mirror pairs and differences of names), ``sigmas`` (known names and the default), ``union`` (of several schemas by
name), ``positions`` (for pictures).
"""
