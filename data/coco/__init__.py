"""COCO's files: annotations in, records and results out.

Doors: ``source`` (find a split), ``annotations`` (read and check), ``records`` (one image), ``split`` (all
images), ``results``."""
