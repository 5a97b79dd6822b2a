"""Names that mean themselves everywhere, and paths that storage libraries would read as something else."""

import pytest

from posefleet.platform.runtime.paths import check_name, resolve_path


@pytest.mark.parametrize("name", ["smpr-r50", "a", "lr=0.1", "x+y", "two words", "ünï", "v1.2_b", "人"])
def test_plain_names(name: str) -> None:
    assert check_name(name, "run.name") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " a", "a ", "a/b", "a\\b", "..", ".", "a..b", ".hidden", "-x", "~", "a~", "a::b", "s3:x", "a?b", "a#b"),
        *("a*", "a[0]", "{a}", "a%2e", 'a"', "a'", "a|b", "a<b", "a\nb", "a\rb", "a\tb", "a\0b", "a\x7fb", "a\x85b"),
        *("a\u2028b", "a\u202eb", "a\u200bb", "a\ud800b", "x" * 201, "ü" * 101),
    ],
)
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.name '?.* use letters, digits, spaces") as told:
        check_name(name, "run.name")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("path", ["a::b", "/data/a::b/c", "a\nb", "a\0b"])
def test_a_path_that_would_be_read_as_something_else_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="rename that"):
        resolve_path(path)


def test_addresses_and_odd_folders_stay() -> None:
    for path in ("s3://bucket/a", "simplecache::s3://bucket/a", "models:/smpr@champion", "/data/s3:x", "/data/a#b[c]?"):
        assert resolve_path(path) == path
