"""Pieces that the methods share: networks (``layers``), functions of tensors (``ops``), and pose regression on a
pyramid (``regression``). What learns nothing is a plain function of tensors."""
