"""AP and AR by COCO's protocol, computed in parts, with error analysis and bootstrap intervals.

Doors: ``evaluate`` (score a data set, or parts that were matched apart), ``accumulate`` (match the images of one part),
``ground_truth`` (annotated people and predicted poses as arrays), ``boxes`` (AP of detected boxes), ``error_analysis``
(kinds of error), ``bootstrap`` (intervals of an AP difference), ``annotators`` (sigmas from images labelled twice)."""
