"""Hostile tars are refused wherever they are read, the error names the member, and nothing is unpacked."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from posefleet.data.errors import DataError
from posefleet.data.io.tars import list_members, member_name
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import read_manifest
from posefleet.data.shards.verify import check_shard, check_shards
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.platform.prediction.inputs import InputImage, list_images, read_input

TERABYTES = 3 << 40


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, data


def tar_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """Written by hand, as tarfile would refuse some of it."""
    blocks = b""
    for entry, data in members:
        blocks += entry.tobuf(format) + data + b"\0" * (-len(data) % 512)
    return blocks + b"\0" * 1024


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    """Eight bytes that stand for a terabyte, in GNU's old format."""
    entry, _ = member("hole.jpg", b"12345678", type=tarfile.GNUTYPE_SPARSE)
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 8)
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return _Raw(bytes(header)), b"12345678"


class _Raw(tarfile.TarInfo):
    def __init__(self, header: bytes) -> None:
        super().__init__()
        self._header = header

    def tobuf(self, *_: Any, **__: Any) -> bytes:
        return self._header


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a parent folder": (tar_of(member("../../etc/cron.d/x")), r"'../../etc/cron.d/x': the name leads out"),
    "a parent inside": (tar_of(member("a/../../x.jpg")), r"'a/../../x.jpg': the name leads out"),
    "windows' parent": (tar_of(member(r"..\..\x.jpg")), "leads out"),
    "an absolute name": (tar_of(member("/etc/passwd")), r"'/etc/passwd': the name leads out"),
    "a long absolute name": (
        tar_of(member("/" + "a" * 300), format=tarfile.PAX_FORMAT),
        r"'/aaaa.*': the name leads out",
    ),
    "a symbolic link": (tar_of(member("a.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "a symbolic link"),
    "a hard link": (tar_of(member("a.jpg", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")), "a hard link"),
    "a device": (tar_of(member("a.jpg", b"", type=tarfile.CHRTYPE, devmajor=1)), "a device"),
    "a pipe": (tar_of(member("a.jpg", b"", type=tarfile.FIFOTYPE)), "a pipe"),
    "a sparse file": (tar_of(sparse()), "'hole.jpg': is a sparse file"),
    "terabytes": (tar_of(member("a.jpg", size=TERABYTES)), f"'a.jpg': announces {TERABYTES:,} bytes"),
    "more than there is": (
        tar_of(member("a.jpg", size=1 << 20)),
        "'a.jpg': announces 1,048,576 bytes, and the tar",
    ),
    "a long name of terabytes": (tar_of(member("././@LongLink", size=TERABYTES, type=b"L")), "a header announces"),
    "a name twice": (tar_of(member("a.jpg"), member("a.jpg", b"y")), "'a.jpg': comes twice"),
    "a folder above": (tar_of(member("../up", b"", type=tarfile.DIRTYPE)), "'../up': the name leads out"),
    "no tar": (b"\x80\x04\x95" * 600, "invalid header|not"),
    "half a tar": (
        tar_of(member("a.jpg", b"y" * 5000))[:1500],
        "'a.jpg': announces 5,000 bytes, and the tar has 1",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tar_is_refused_by_name_before_anything_is_read(what: str, tmp_path: Path) -> None:
    data, message = HOSTILE[what]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wild.tar").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=rf"wild\.tar: .*({message}).*; make the tar again"):
        list_images(str(tmp_path / "in" / "wild.tar"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_images_of_a_plain_tar_are_listed(format: int, tmp_path: Path) -> None:
    long = "b" * 120 if format != tarfile.USTAR_FORMAT else "c" * 60 + "/" + "b" * 60
    with tarfile.open(tmp_path / "train-0000.tar", "w", format=format) as tar:
        tar.addfile(*_stream(member("./photos", b"", type=tarfile.DIRTYPE)))
        for name, data in (("./photos/1.jpg", b"one"), ("photos/1.json", b"{}"), (f"{long}.png", b"three")):
            tar.addfile(*_stream(member(name, data)))
    listed = list_images(str(tmp_path / "*.tar"))
    assert [(p.name, p.image_id, p.size) for p in listed.listed] == [
        ("train-0000.tar/photos/1.jpg", 1, 3),
        (f"train-0000.tar/{long}.png", 2, 5),
    ]
    fs = fsspec.filesystem("file")
    assert [read_input(fs, listed.folder.removeprefix("file://"), p) for p in listed.listed] == [b"one", b"three"]


def _stream(pair: tuple[tarfile.TarInfo, bytes]) -> tuple[tarfile.TarInfo, io.BytesIO]:
    return pair[0], io.BytesIO(pair[1])


def test_a_tar_that_changes_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member("a.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")))
    with pytest.raises(DataError, match=r"a\.tar/a\.jpg: member 'a\.jpg': is a symbolic link"):
        read_input(fsspec.filesystem("file"), str(tmp_path), InputImage("a.tar/a.jpg", 1, 1, "a.tar", 512))


def test_only_headers_of_a_tar_are_read() -> None:
    class Counting(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.total += len(data)
            return data

    file = Counting(tar_of(*(member(f"{n}.jpg", b"y" * 100_000) for n in range(5))))
    assert [found.size for found in list_members(file, "x")] == [100_000] * 5
    assert file.total < 10_000


def test_the_header_of_a_member_says_what_its_index_says() -> None:
    entry, _ = member("000000000001.jpg", b"12345")
    assert member_name(entry.tobuf(), 5) == "000000000001.jpg"
    with pytest.raises(DataError, match="not that of a file of 6 bytes"):
        member_name(entry.tobuf(), 6)
    with pytest.raises(DataError):
        member_name(b"\xff" * 512, 5)
    with pytest.raises(DataError):
        member_name(b"", 5)


# ---------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def shards(people_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(people_shards / "train2017", tmp_path / "shards"))


def spoil(shards: Path, change: Callable[[tarfile.TarInfo], None], which: int = 0) -> None:
    """Change the header of a member of the first shard, and let index and manifest agree with it."""
    name = read_manifest(str(shards)).shards[0].name
    tar = bytearray((shards / f"{name}.tar").read_bytes())
    index = json.loads((shards / f"{name}.json").read_text())
    offset = index["members"][which][0] - 512
    entry = tarfile.TarInfo.frombuf(bytes(tar[offset : offset + 512]), "utf-8", "strict")
    change(entry)
    tar[offset : offset + 512] = entry.tobuf(tarfile.GNU_FORMAT)
    (shards / f"{name}.tar").write_bytes(tar)
    index["sha256"] = hashlib.sha256(tar).hexdigest()
    (shards / f"{name}.json").write_text(json.dumps(index))
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = index["sha256"]
    (shards / "manifest.json").write_text(json.dumps(manifest))


def read_all(shards: Path) -> None:
    transform = EvalTransform(Resize(short_side=64, long_side=64), COCO17)
    dataset = ShardDataset(shards, COCO17, transform, seed=None)
    dataset.samples(range(len(dataset)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../../root/.ssh/x.jpg"}, "'../../root/.ssh/x.jpg': the name leads out"),
        ({"name": "/etc/x.jpg"}, "'/etc/x.jpg': the name leads out"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, r"'\d+.jpg': is a symbolic link"),
        ({"type": tarfile.CHRTYPE}, r"'\d+.jpg': is a device"),
        ({"type": tarfile.GNUTYPE_SPARSE}, r"'\d+.jpg': is a sparse file"),
        ({"size": TERABYTES}, r"'\d+.jpg': its header is not that of a file of"),
    ],
)
def test_a_hostile_member_of_a_shard_is_refused_where_it_is_read(
    fields: dict[str, Any], message: str, shards: Path
) -> None:
    read_all(shards)
    spoil(shards, lambda entry: [setattr(entry, field, value) for field, value in fields.items()])
    with pytest.raises(DataError, match=rf"shard-000000\.tar: .*member {message}.*run posefleet shard again"):
        read_all(shards)
    assert check_shard(str(shards), "shard-000000") is None
    (fault,) = check_shards(str(shards))
    assert "shard-000000.tar: member" in fault and fault.endswith("run posefleet shard again")
    listing = list_images(str(shards))  # reads only records
    with pytest.raises(DataError, match=rf"member {message}"):
        read_input(fsspec.filesystem("file"), str(shards), listing.listed[0])


def test_members_with_equal_names_are_found_when_a_shard_is_verified(shards: Path) -> None:
    tar = (shards / "shard-000000.tar").read_bytes()
    second = json.loads((shards / "shard-000000.json").read_text())["members"][1][0]
    name = tarfile.TarInfo.frombuf(tar[second - 512 : second], "utf-8", "strict").name
    spoil(shards, lambda entry: setattr(entry, "name", name))
    (fault,) = check_shards(str(shards))
    assert f"member {name!r} comes twice" in fault


def test_an_index_that_skips_a_member_is_refused(shards: Path) -> None:
    """Bytes between the members of the index would not be verified."""
    path = shards / "shard-000000.json"
    index = json.loads(path.read_text())
    del index["members"][1]
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"shard-000000\.json: damaged index: its members do not fill the tar"):
        read_all(shards)


def test_a_member_after_the_last_that_the_index_names_is_found(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    tar = path.read_bytes() + tar_of(member("late.jpg"))
    path.write_bytes(tar)
    for file, place in (("shard-000000.json", lambda c: c), ("manifest.json", lambda c: c["shards"][0])):
        content = json.loads((shards / file).read_text())
        place(content).update(bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
        (shards / file).write_text(json.dumps(content))
    (fault,) = check_shards(str(shards))
    assert "holds more than its index names" in fault
