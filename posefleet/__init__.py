"""posefleet: COCO keypoints to a served multi-person pose estimator, on a Ray cluster."""

import gc

# Importing torch makes a million objects that stay; at Python's default of 700 the collector looks at them over and
# over, which is felt by whoever waits for --help.
gc.set_threshold(50_000, 20, 20)
