"""Rendered people and animals with exact keypoint annotations: data that needs no download.

Other packages import ``SceneConfig``, ``SCENES`` and ``render_scene`` from ``scenes``, and ``write_dataset`` from
``dataset``. On the command line: ``python -m posefleet.data.synthetic``.
"""
