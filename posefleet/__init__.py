"""posefleet: COCO keypoints to a served multi-person pose estimator, on a Ray cluster."""
