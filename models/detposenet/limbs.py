"""The limbs along which coarse poses grow: the skeleton, completed to one piece."""

from posefleet.data.schemas.schema import KeypointSchema


def limbs_of(schema: KeypointSchema) -> list[tuple[int, int]]:
    """The limbs of a schema, as pairs of keypoint indices.

    They are the edges of its skeleton, cycles included, and then as many edges as connect all keypoints. Those are the
    edges of a minimum spanning tree in which the distance of two keypoints is that of their indices, because lists of
    keypoints mostly follow the body. So a schema without a skeleton gets a chain. The result depends on the schema
    alone. A single keypoint has no limbs.
    """
    piece = list(range(len(schema)))
    limbs = list(schema.edges)
    for a, b in limbs:
        _join(piece, a, b)
    for distance in range(1, len(schema)):
        for a in range(len(schema) - distance):
            if piece[a] != piece[a + distance]:
                _join(piece, a, a + distance)
                limbs.append((a, a + distance))
    return limbs


def _join(piece: list[int], a: int, b: int) -> None:
    """Give all keypoints of the piece of ``b`` the number of the piece of ``a``."""
    old, new = piece[b], piece[a]
    piece[:] = [new if number == old else number for number in piece]
