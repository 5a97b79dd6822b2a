"""The documentation site is built without warnings, holds what the code declares, and asks nothing of other hosts."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest

from posefleet.command_line import options
from posefleet.jobs.cli import VERBS
from posefleet.models import available_methods
from posefleet.platform.config.cli import experiment_options

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {"src", "srcset", "poster", "data", "action", "formaction", "background"}
"""Attributes whose addresses a browser fetches by itself; of links only those of <link> elements."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A section of settings."""

    speed: int = 3
    """How fast it goes, ``3`` or more."""
    kind: Literal["near", "far"] = "near"
    """Where it is."""


class Document(HTMLParser):
    """Addresses in a page: those that a browser fetches, and those that a reader may follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", text)
        self.followed: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            elif name in FETCHED or (name == "href" and tag != "a"):
                self.fetched.append(value or "")
            elif name == "href":
                self.followed.append(value or "")


def remote(text: str) -> list[str]:
    """Addresses on other hosts that a browser would fetch for a page or a style sheet."""
    return [address for address in Document(text).fetched if re.match(r"\s*(\w+:)?//", address)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, as `make docs` builds it, and what MkDocs printed."""
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return site, done.stderr


@pytest.fixture(scope="module")
def pages(built: tuple[Path, str]) -> dict[Path, Document]:
    return {path: Document(path.read_text()) for path in built[0].rglob("*.html")}


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_it_is_built_without_warnings(built: tuple[Path, str], pages: dict[Path, Document]) -> None:
    assert "WARNING" not in built[1] and len(pages) > 40


def test_no_page_fetches_anything_from_another_host(built: tuple[Path, str]) -> None:
    files = [path for path in built[0].rglob("*") if path.suffix in (".html", ".css", ".svg")]
    found = {path.name: addresses for path in files if (addresses := remote(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://unpkg.com/mermaid"></script>',
        '<script src="//unpkg.com/mermaid"></script>',
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>',
        '<img alt="" src="http://example.org/badge.svg">',
        "@import 'https://fonts.googleapis.com/css';",
        "body { background: url(//example.org/a.png) }",
        '<svg><image href="https://example.org/a.png"/></svg>',
    ],
)
def test_a_planted_resource_is_found(text: str) -> None:
    assert len(remote(text)) == 1


def test_a_link_that_a_reader_follows_may_lead_outside() -> None:
    assert remote('<a href="https://example.org">there</a><img src="people.jpg">') == []


def test_every_link_within_the_site_resolves(built: tuple[Path, str], pages: dict[Path, Document]) -> None:
    """MkDocs checks the links of Markdown; the links of generated HTML and of the theme are checked here."""
    lost = []
    for path, page in pages.items():
        for address in {*page.followed, *page.fetched}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or path.name == "404.html":  # its links begin at the root of the host
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in {*pages[target].ids, "__top"}
            ):
                lost.append(f"{path.relative_to(built[0])}: {address}")
    assert lost == []


@pytest.mark.parametrize("method", available_methods())
def test_the_page_of_a_method_has_every_setting(
    method: str, built: tuple[Path, str], pages: dict[Path, Document]
) -> None:
    path = built[0] / "reference" / "settings" / f"{method}.html"
    assert {option.path for option in experiment_options(method)} <= pages[path].ids


@pytest.mark.parametrize("page", [path for path in (ROOT / "docs" / "methods").glob("*.md") if path.stem != "index"])
def test_settings_that_the_page_of_a_method_names_exist(page: Path) -> None:
    known = {option.path for option in experiment_options(page.stem)}
    sections = {path.rpartition(".")[0] for path in known}
    named = set(re.findall(r"`(model(?:\.\w+)+)", page.read_text()))
    assert named and named <= known | sections


def test_every_command_has_a_page_with_its_options(built: tuple[Path, str], pages: dict[Path, Document]) -> None:
    folder = built[0] / "reference" / "commands"
    assert set(VERBS) | {"index", "other"} == {path.stem for path in folder.iterdir()}
    assert {"samples", "scheduler", "train.epochs"} <= pages[folder / "tune.html"].ids
    assert {"config", "profile"} <= pages[folder / "train.html"].ids


def test_a_setting_that_is_added_shows_up(hooks: ModuleType) -> None:
    table = hooks.table(options(Planted, "model.planted."))
    assert "<code>--model.<wbr>planted.<wbr>speed</code></td><td>integer<br>default <code>3</code></td>" in table
    assert "<td>How fast it goes, <code>3</code> or more.</td>" in table
    assert "<code>near</code> <code>far</code><br>default <code>near</code>" in table


def test_equations_are_drawn_without_a_script(built: tuple[Path, str]) -> None:
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        text = (built[0] / "methods" / f"{page.stem}.html").read_text()
        drawn = re.findall(r"<math.*?</math>", text, re.DOTALL)
        assert len(drawn) > 5 and "arithmatex" not in text
        assert [one for one in drawn if "\\" in one] == [], "commands that the library does not know stay as text"


@pytest.mark.parametrize(
    ("link", "folder", "expected"),
    [
        ("[a](../README.md)", "docs", "[a](index.md)"),
        ("[a](../CHANGELOG.md#x)", "docs", "[a](changelog.md#x)"),
        ("[a](../tests/published/README.md)", "docs", "a"),
        ("[a](data.md#yolo)", "docs", "[a](data.md#yolo)"),
        ("[a](docs/data.md)", "", "[a](data.md)"),
        ("[a](LICENSE)", "", "[a](licence.txt)"),
        ("[a](https://example.org/x.md)", "docs", "[a](https://example.org/x.md)"),
    ],
)
def test_a_link_that_is_right_in_the_repository_is_right_on_the_site(
    link: str, folder: str, expected: str, hooks: ModuleType
) -> None:
    assert hooks.relinked(link, folder, "data.md") == expected
