"""File names as label tools write them: finds out how the names of an annotation file lead to its images.

Tools write paths of the machine or server that the images were labelled on: ``images\\x.jpg``,
``/content/data/x.jpg``, ``/data/upload/1/ab12cd34-my%20x.jpg``. One rule for all names of a file is chosen, by which
names lead to files that are there.
"""

import itertools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Any
from urllib.parse import unquote

from posefleet.data.coco.annotations import image_record_fault
from posefleet.data.errors import DataError
from posefleet.data.io.json_stream import read_lists

ANY_FOLDER = "*"
"""Value of :attr:`NameRule.prefix`: all folders of a name are left out."""

PROBES = 20
"""Names, spread over all, of which one must lead to a file before a rule is tried on all names."""

_UPLOAD = re.compile(r"^[0-9a-f]{4,8}-(?=.)")
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://[^/]*/?")


@dataclass(frozen=True, slots=True)
class NameRule:
    """Turns a file name of an annotation file into a path inside the image folder. The default changes nothing."""

    backslashes: bool = False
    """Backslashes separate folders."""
    url: bool = False
    """Names are URLs: ``%20`` is a space. In ``?d=PATH`` (Label Studio's local files) PATH counts, else what is
    before ``?``."""
    upload: bool = False
    """The hexadecimal digits that Label Studio puts before the name of an uploaded file are left out."""
    form: str = ""
    """Unicode form of the names on disk: NFC, or NFD as macOS writes it; empty: as written."""
    prefix: str = ""
    """Leading folders that are left out, without a slash at the end. ``ANY_FOLDER``: all folders. A dot: only ``./``,
    which every rule but the default leaves out."""

    def __call__(self, name: str) -> str:
        """The path of the image ``name`` inside the image folder."""
        if self == AS_WRITTEN:
            return name
        parts = self._decoded(name).split("/")
        if self.prefix == ANY_FOLDER:
            parts = parts[-1:]
        elif self.prefix and (prefix := self.prefix.split("/")) == parts[: len(prefix)]:
            parts = parts[len(prefix) :]
        if self.upload:
            parts[-1] = _UPLOAD.sub("", parts[-1])
        return "/".join(parts)

    @property
    def changes(self) -> int:
        """How many things it changes."""
        return sum(map(bool, astuple(self)))

    def __str__(self) -> str:
        said = {
            "backslashes read as /": self.backslashes,
            "URL escapes decoded": self.url,
            "the digits before uploaded names left out": self.upload,
            f"in Unicode form {self.form}": self.form,
            "all folders left out": self.prefix == ANY_FOLDER,
            f"{self.prefix + '/'!r} left out": self.prefix not in ("", ANY_FOLDER),
        }
        return ", ".join(text for text, is_so in said.items() if is_so) or "as written"

    def _decoded(self, name: str) -> str:
        """The name with all its folders; an absolute one begins with a slash."""
        if self.url:
            name, _, query = _SCHEME.sub("/", name).partition("?")
            given = [pair.removeprefix("d=") for pair in query.split("&") if pair.startswith("d=")]
            name = unquote(given[0] if given else name)
        if self.backslashes:
            name = name.replace("\\", "/")
        if self.form:
            name = unicodedata.normalize(self.form, name)  # type: ignore[arg-type]  # one of its literals
        return posixpath.normpath(name).replace("//", "/", 1) if name else name


AS_WRITTEN = NameRule()
"""The rule that changes nothing."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a rule fits a folder."""

    rule: NameRule
    found: dict[str, str] = field(default_factory=dict)
    """File name -> path inside the folder, of those names that lead to a file."""


def sample_names(annotation_file: str, most: int) -> list[str]:
    """The first file names of an annotation file, at most so many; none if it cannot be read."""
    names: list[str] = []

    def add(image: Any) -> None:
        if not image_record_fault(image):  # else the reader of the annotations reports it
            names.append(image["file_name"])
        if len(names) == most:
            raise _Enough

    with suppress(_Enough, DataError):
        read_lists(annotation_file, {"images": add})
    return list(dict.fromkeys(names))


def fit_rule(names: Sequence[str], exists: Callable[[str], bool]) -> Fit:
    """The rule by which most names lead to a file; of equal ones the plainest.

    A rule under which two names lead to the same file is not taken.

    Args:
        names: File names of an annotation file.
        exists: Whether there is a file at a path inside the image folder.
    """
    best = Fit(AS_WRITTEN)
    probes = names[:: max(1, len(names) // PROBES)]
    for rule in _rules(names):
        if not any(_leads_to(rule(name), exists) for name in probes):
            continue
        found = {name: rule(name) for name in names if _leads_to(rule(name), exists)}
        if len(set(found.values())) == len(found) > len(best.found):
            best = Fit(rule, found)
        if len(best.found) == len(names):
            break
    return best


class _Enough(Exception):
    """Ends the reading of an annotation file."""


def _leads_to(path: str, exists: Callable[[str], bool]) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and exists(path)


def _rules(names: Sequence[str]) -> Iterator[NameRule]:
    """All rules that may change something in ``names``, plain ones first."""
    yield AS_WRITTEN
    whole = "\n".join(names)
    backslashes = (False, True) if "\\" in whole else (False,)
    url = (False, True) if any(mark in whole for mark in ("%", "?", "://")) else (False,)
    forms = ("",) if whole.isascii() else ("", "NFC", "NFD")
    for upload, form, is_url, slashes in itertools.product((False, True), forms, url, backslashes):
        plain = NameRule(slashes, is_url, upload, form)
        decoded = [plain._decoded(name) for name in names]
        if upload and not any(_UPLOAD.match(name.rpartition("/")[2]) for name in decoded):
            continue
        folders = [name.rpartition("/")[0] for name in decoded]
        yield plain
        for prefix in _prefixes(folders):
            yield NameRule(slashes, is_url, upload, form, prefix)
        if any(folders) or any(name.startswith("/") for name in decoded):
            yield NameRule(slashes, is_url, upload, form, ANY_FOLDER)
        if plain == AS_WRITTEN and list(names) != decoded:
            yield NameRule(prefix=".")


def _prefixes(folders: Sequence[str]) -> Iterator[str]:
    """The folders that all names are in, from the outermost on: ``a``, ``a/b``, ..."""
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    common = [level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)]
    return ("/".join(common[: end + 1]) for end in range(len(common)) if any(common[: end + 1]))
