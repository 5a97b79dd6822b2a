"""COCO's files: reads annotations, makes records, writes results.

Doors: ``source`` (find a split), ``layouts`` (annotation files of a folder), ``reader`` (read and check annotations
record by record), ``image_files`` (read and check images), ``annotations`` (people of records), ``labels`` (numbers of
some people), ``records`` (one image), ``split`` (all images), ``results`` (write predictions), ``file_schema``
(categories and the keypoints that a file names), ``file_names`` (as label tools write them)."""
