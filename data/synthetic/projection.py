"""Ellipsoids as the viewer sees them: the outlines of groups of them, and their depths."""

import numpy as np

from posefleet.data.synthetic.canvas import fixed_point

_DIRECTIONS = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
"""(16, 2) unit vectors round the image plane: an outline has one corner in each of these directions."""
_PARTS = np.array([1.0, 0.6])
"""Size of the whole of an ellipsoid and of its lit part."""
_CORNERS = np.arange(len(_PARTS) * len(_DIRECTIONS)).reshape(len(_PARTS), len(_DIRECTIONS))


class Projection:
    """E ellipsoids of a figure, projected into the image.

    Args:
        centres: (E, 3), body frame.
        axes: (E, 3, 3) half axes, columns, body frame.
        view: (3, 3) rotation from the body frame to the viewer's, see ``view_axes``.
        height: Pixels of one unit of the body frame.
        origin: Pixels of the origin of the body frame.
        light: Where the light comes from, -1 (left) to 1 (right).
    """

    def __init__(
        self,
        centres: np.ndarray,
        axes: np.ndarray,
        view: np.ndarray,
        height: float,
        origin: tuple[float, float],
        light: float,
    ) -> None:
        self._height, self._origin = height, origin
        centres = centres @ view.T
        self.depths: list[float] = centres[:, 2].tolist()
        """Depth of each ellipsoid, body frame; larger is nearer to the viewer."""
        self.places = self.place(centres)
        """(E, 2) pixels, centres."""
        # An ellipsoid with half axes A in the image plane reaches |A' u| far in direction u, at A A' u / |A' u|.
        axes = view[:2] * [[height], [-height]] @ axes
        self.axes = axes
        """(E, 2, 3) pixels, half axes."""
        squared = _DIRECTIONS @ (axes @ axes.transpose(0, 2, 1))
        reach = np.sqrt(np.einsum("edi,di->ed", squared, _DIRECTIONS))
        edge = squared / reach[..., None]
        towards_light = reach[:, [0, len(_DIRECTIONS) // 4]] * (0.25 * light, -0.12)
        middles = np.stack([self.places, self.places + towards_light], 1)  # of the whole and of its lit part
        self._outlines = middles[:, :, None] + _PARTS[:, None, None] * edge[:, None]
        self._reaches = middles @ _DIRECTIONS.T + _PARTS[:, None] * reach[:, None]

    def place(self, seen: np.ndarray) -> np.ndarray:
        """Viewer's (..., 3), units of the body frame, to (..., 2) pixels."""
        return seen[..., :2] * (self._height, -self._height) + self._origin

    def hulls(self, members: np.ndarray) -> np.ndarray:
        """Convex hulls of groups of ellipsoids.

        In each direction a hull reaches as far as the farthest-reaching of its members.

        Args:
            members: (N, M) rows of ellipsoids; a row may come twice.

        Returns:
            (N, 2, 16, 2) fixed point: the whole and its lit part.
        """
        farthest = self._reaches[members].argmax(1)  # (N, 2, 16)
        owners = members[np.arange(len(members))[:, None, None], farthest]
        corners = owners * _CORNERS.size + _CORNERS
        return fixed_point(self._outlines.reshape(-1, 2).take(corners, axis=0))
