"""Network layers that several methods build on: backbones, pyramids (``fpn``), fusion of levels, blocks of heads,
deformable convolution, safe loading of weights, weights to fetch (``published``), and their names (``released``)."""
