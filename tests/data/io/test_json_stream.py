"""Tests reading the lists of json files element by element."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posefleet.data.errors import DataError
from posefleet.data.io import json_stream as json_lists
from posefleet.data.io.json_stream import read_list, read_lists

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def lists_of(path: Path, *names: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in names}
    read_lists(str(path), {name: taken.append for name, taken in found.items()})
    return found


@settings(deadline=None, max_examples=60)
@given(
    content=st.dictionaries(st.sampled_from(["a", "b", "c", "ü"]), VALUES, max_size=4),
    chunk=st.sampled_from([4, 5, 7, 16, 1000]),  # the encoding is found from the first four bytes
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    indent=st.sampled_from([None, 1]),
)
def test_it_reads_the_same_as_json(
    content: dict[str, Any], chunk: int, encoding: str, indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("json") / "file.json"
    file.write_bytes(json.dumps(content, ensure_ascii=False, indent=indent).encode(encoding, "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "CHUNK", chunk)
        assert lists_of(file, "a", "b", "ü") == {
            name: content[name] if isinstance(content.get(name), list) else [] for name in ("a", "b", "ü")
        }
        assert read_lists(str(file), {}) == {name for name, value in content.items() if isinstance(value, list)}


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(
    "text", ['{"a": [1,]}', '{"a": 1,}', '{"a": [1 2]}', '{"a": 1} 2', "{1: 2}", '{"a"\n: [1,\n x]}', '{"a": [1', "{"]
)
def test_what_is_no_json_is_refused_where_json_refuses_it(
    text: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "CHUNK", chunk)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(DataError, match=rf"not json: .* at line {expected.value.lineno}, column \d+"):
        read_lists(str(tmp_path / "a.json"), {})


def test_an_element_without_an_end_is_not_read_to_the_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "CHUNK", 10)
    monkeypatch.setattr(json_lists, "LONGEST", 100)
    file = tmp_path / "a.json"
    file.write_bytes(b'{"a": ["' + b"x" * 500 + b"\xff")  # the last byte would be another error
    with pytest.raises(DataError, match="Unterminated string starting at at line 1, column 8"):
        read_lists(str(file), {})


def test_a_list_is_read_element_by_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lists, "CHUNK", 5)
    file, found = tmp_path / "list.json", []
    file.write_text(json.dumps(content := [{"a": [1.5, 2]}, 3, "x"]))
    read_list(str(file), found.append)
    assert found == content


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "expected a json list"), ("", "the file is empty"), ("[1] 2", "Extra data"), ("[1", "not json")],
)
def test_what_is_no_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_list(str(tmp_path / "list.json"), lambda _: None)
