"""Pose regression on a pyramid: the head, its targets and losses, shared by the methods that regress poses."""
