"""YAML of users: nesting and aliases without bounds are refused in one sentence, at once, wherever a file is read."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posefleet.data.schemas.shipped import read_schema
from posefleet.jobs import serve
from posefleet.plain_yaml import MAX_DEPTH, parse_yaml
from posefleet.platform.config.cli import parse_experiment
from posefleet.platform.config.loading import read_yaml

ALIASES = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]

HOSTILE = {
    "lists": ("[" * 100_000, "nested more than"),
    "mappings": ("{a: " * 100_000, "nested more than"),
    "items": ("- " * 100_000, "nested more than"),
    "lines": ("\n".join(" " * depth + "a:" for depth in range(2_000)), "line 65 is nested more than"),
    "aliases": ("\n".join(ALIASES), "aliases stand for more than"),
    "itself": ("a: &a [*a]", "part of the value that it stands for"),
    "digits": (f"a: {'9' * 5_000}", "not valid YAML"),
    "object": ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
}


def read_serve_config(path: str) -> None:
    serve.main([path])


def read_train_config(path: str) -> None:
    parse_experiment("smpr", ["--config", path])


READERS: dict[str, Callable[[str], object]] = {
    "config": read_yaml,
    "schema": read_schema,
    "command": read_train_config,
    "serve": read_serve_config,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_at_once_in_one_sentence(
    reader: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, complaint = HOSTILE[case]
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises((ValueError, SystemExit)) as caught:
        READERS[reader](str(path))
    assert time.process_time() - started < 2
    message = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert complaint in message and "hostile.yaml" in message and "Traceback" not in message


def test_what_people_write_is_read() -> None:
    assert parse_yaml(b"base: &base {lr: 0.1}\nmodel: {<<: *base, size: [1, 2]}\n", "a.yaml") == {
        "base": {"lr": 0.1},
        "model": {"lr": 0.1, "size": [1, 2]},
    }
    deep = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert str(parse_yaml(deep, "a.yaml")) == deep
    with pytest.raises(ValueError, match="nested more than"):
        parse_yaml(f"[{deep}]", "a.yaml")
