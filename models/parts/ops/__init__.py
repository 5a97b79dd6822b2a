"""Plain functions of tensors: cells, assignment, targets, losses, OKS, suppression and decoding."""
