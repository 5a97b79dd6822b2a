"""Network layers that several methods build on: backbones, pyramids (``fpn``), fusion of levels, blocks of heads,
deformable convolution, and safe loading of weights."""
