"""COCO's files: reads annotations, makes records, writes results.

Doors: ``source`` (find a split), ``annotations`` (read and check), ``records`` (one image), ``split`` (all
images), ``results`` (write predictions), ``file_schema`` (the keypoints that a file names)."""
