"""YOLO's text files of keypoints: reads and writes them, to and from COCO's format.

Doors: ``to_coco``, ``from_coco``, ``data_file`` (find and read a data.yaml), ``problems``
(what was left out)."""
