"""Networks that several methods build on: backbones, pyramids, blocks, and safe loading of weights."""
