"""Reads the lists of a json file element by element: annotation files may be larger than memory."""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import fsspec

from posefleet.data.errors import DataError

CHUNK = 1 << 20
"""Bytes of one read."""

LONGEST = 1 << 26
"""Maximum characters of an element; a longer one means a damaged file."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER_GOES_ON = 4  # characters needed to know that a number ended: 12 may be the start of 12.5 or of 12e-3


def read_lists(path: str, takers: Mapping[str, Callable[[Any], None]]) -> set[str]:
    """Read a json object and call a function with each element of its lists; everything else is skipped.

    Args:
        path: Any fsspec path.
        takers: Key of the object -> function that is called with every element of the list there, in file order.

    Returns:
        The keys that have lists.

    Raises:
        DataError: The file is missing, empty or not a json object; the message has line and column.
    """
    with _opened(path) as text:
        return _read_object(text, takers)


def read_list(path: str, take: Callable[[Any], None]) -> None:
    """Read a json list, such as COCO results, and call ``take`` with each element, in file order.

    Args:
        path: Any fsspec path.
        take: Called with every element.

    Raises:
        DataError: The file is missing, empty or not a json list; the message has line and column.
    """
    with _opened(path) as text:
        if text.peek() != "[":
            raise DataError(f"{path}: {'expected a json list' if text.peek() else 'the file is empty'}")
        _read_list(text, take)
        _check_end(text)


@contextmanager
def _opened(path: str) -> Iterator["_Text"]:
    try:
        with fsspec.open(path, "rb") as file:
            yield _Text(path, file)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply for an annotation file") from error


def _read_object(text: "_Text", takers: Mapping[str, Callable[[Any], None]]) -> set[str]:
    start = text.peek()
    if not start:
        raise DataError(f"{text.path}: the file is empty")
    if start != "{":
        kind = type(text.value()).__name__
        raise DataError(f"{text.path}: expected a json object with images and annotations, found a {kind}")
    found = set()
    text.skip("{")
    if text.peek() != "}":
        found |= _read_member(text, takers)
        while text.peek() == ",":
            text.skip(",")
            found |= _read_member(text, takers)
    text.skip("}")
    _check_end(text)
    return found


def _check_end(text: "_Text") -> None:
    if text.peek():
        raise text.error("Extra data", text.at)


def _read_member(text: "_Text", takers: Mapping[str, Callable[[Any], None]]) -> set[str]:
    """Read a key and its value; returns the key if the value is a list."""
    if text.peek() != '"':
        raise text.error("Expecting property name enclosed in double quotes", text.at)
    key = text.value()
    text.skip(":")
    if text.peek() != "[":
        text.value()
        return set()
    _read_list(text, takers.get(key, _forget))
    return {key}


def _read_list(text: "_Text", take: Callable[[Any], None]) -> None:
    text.skip("[")
    if text.peek() != "]":
        take(text.value())
        while text.peek() == ",":
            text.skip(",")
            take(text.value())
    text.skip("]")


def _forget(_: Any) -> None:
    """Takes the elements of lists without a taker."""


class _Text:
    """A json text; only the part that is being parsed is in memory."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.path = path
        self.at = 0
        """Index of the next character to parse, in the part that is in memory."""
        self._file = file
        self._text = ""
        self._whole = False
        self._line, self._column, self._bytes = 1, 1, 0  # of the first character in memory, of what was read
        self._scan = json.JSONDecoder().raw_decode
        self._decode: Callable[[bytes, bool], str] | None = None

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self.at)
            assert space is not None
            self.at = space.end()
            if self.at < len(self._text) or self._whole:
                return self._text[self.at : self.at + 1]
            self._read_on()

    def skip(self, mark: str) -> None:
        """Go past ``mark``, which must be next."""
        if self.peek() != mark:
            raise self.error(f"Expecting {mark!r}", self.at)
        self.at += 1

    def value(self) -> Any:
        """Parse the next value."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                if self._whole or len(self._text) - self.at > LONGEST:
                    raise self.error(error.msg, error.pos) from None
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error).partition(";")[0], self.at) from None
            else:
                if self._whole or len(self._text) - end >= _NUMBER_GOES_ON:
                    self.at = end
                    return value
            self._read_on()

    def error(self, message: str, at: int) -> DataError:
        """A ``DataError`` with line and column of index ``at`` in the part that is in memory."""
        line, column = self._place(at)
        return DataError(f"{self.path}: not json: {message} at line {line}, column {column}")

    def _place(self, at: int) -> tuple[int, int]:
        lines = self._text.count("\n", 0, at)
        return self._line + lines, at - self._text.rfind("\n", 0, at) if lines else self._column + at

    def _read_on(self) -> None:
        self._line, self._column = self._place(self.at)
        rest = self._text[self.at :]
        data = self._file.read(max(CHUNK, len(rest)))  # doubled each time, so a long element is read in linear time
        if self._decode is None:
            self._decode = codecs.getincrementaldecoder(json.detect_encoding(data))("surrogatepass").decode
        self._whole = not data
        try:
            self._text, self.at = rest + self._decode(data, self._whole), 0
        except UnicodeDecodeError as error:
            place = self._bytes + error.start
            raise DataError(f"{self.path}: not json: byte {place} is not UTF-8") from error
        self._bytes += len(data)
