"""Verifies that stored shards match their index and the manifest."""

from posefleet.data.coco.source import parse_place
from posefleet.data.errors import DataError
from posefleet.data.io.tars import BLOCK, member_name, whole_blocks
from posefleet.data.shards.layout import (
    HashingFile,
    ShardInfo,
    index_members,
    open_root,
    parse_shard_info,
    read_index_json,
    read_manifest,
)

_CHUNK = 1 << 22


def check_shard(root: str, name: str) -> ShardInfo | None:
    """The shard's entry for the manifest if :func:`verify_shard` accepts it, else None: it is missing or broken."""
    try:
        return verify_shard(root, name)
    except DataError:
        return None


def verify_shard(root: str, name: str) -> ShardInfo:
    """Read a whole shard, and check that size and sha256 match the index and that all members are plain files.

    Returns:
        The shard's entry for the manifest.

    Raises:
        DataError: The shard is missing or broken; the message says what is wrong.
    """
    index = read_index_json(root, f"{name}.json")
    if index is None:
        raise DataError(f"{root}/{name}.json: no such index")
    members = index_members(root, index)
    try:
        info = parse_shard_info(root, {key: index[key] for key in ShardInfo.__slots__})
    except (KeyError, TypeError) as error:
        raise DataError(f"{root}/{name}.json: damaged index: {error}") from None
    fs, path = open_root(root)
    tar = f"{path}/{name}.tar"
    if info.name != name or info.samples != len(members) or not fs.exists(tar) or fs.size(tar) != info.bytes:
        raise DataError(f"{root}/{name}.tar: missing, or not what its index says")
    names: set[str] = set()
    with fs.open(tar, "rb") as file:
        hashing = HashingFile(file)
        for size in members[:, [1, 3]].flatten().tolist():
            try:
                member = member_name(hashing.read(BLOCK), size)
            except DataError as error:
                raise DataError(f"{root}/{name}.tar: {error}") from None
            if member in names:
                raise DataError(f"{root}/{name}.tar: member {member!r} comes twice")
            names.add(member)
            hashing.read(whole_blocks(size))
        while chunk := hashing.read(_CHUNK):
            if chunk.strip(b"\0"):
                raise DataError(f"{root}/{name}.tar: holds more than its index names")
    if hashing.sha256.hexdigest() != info.sha256:
        raise DataError(f"{root}/{name}.tar: damaged: its sha256 is not that of its index")
    return info


def check_shards(root: str) -> list[str]:
    """The faults of a shard folder, a sentence each: every shard is read, and compared with index and manifest.

    ``FOLDER@SPLIT`` has none: its images were decoded, and those that are damaged left out, when it was opened.

    Raises:
        DataError: The manifest is missing or damaged.
    """
    shards = read_manifest(root).shards
    return [] if parse_place(root) else [fault for shard in shards if (fault := _fault(root, shard))]


def _fault(root: str, shard: ShardInfo) -> str:
    try:
        found = verify_shard(root, shard.name)
    except DataError as error:
        return f"{error}; run posefleet shard again"
    return "" if found == shard else f"{root}/{shard.name}: not the shard of the manifest; run posefleet shard again"
