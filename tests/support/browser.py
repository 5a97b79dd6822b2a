"""What a person does on the page of a pose server, for tests: steps of a real browser.

Each step takes the page; the server behind it must answer correctly. Debian's Chromium is used where it is installed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # beside other work a browser is slow

Colour = tuple[int, int, int]


@contextmanager
def open_browser() -> Iterator["sync_api.Browser"]:
    """A headless browser with a camera that is not there; skips where there is no Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: "sync_api.Browser", address: str, **context: object) -> Iterator["sync_api.Page"]:
    """The page of the server at ``address``, which ends with a slash.

    On exit, checks that the page requested nothing from another host and logged no error: no script failed, and
    nothing violated its content security policy.
    """
    with browser.new_context(**context) as opened:
        opened.set_default_timeout(20_000)
        page = opened.new_page()
        requested, errors = list[str](), list[str]()
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        yield page
        assert [url for url in requested if not url.startswith((address, "blob:", "data:"))] == []
        # A refused request is logged to the console by the browser itself.
        refused = "Failed to load resource: the server responded"
        assert [error for error in errors if not error.startswith(refused)] == []


# ---------------------------------------------------------------------------------------------------------- steps


def upload(page: "sync_api.Page", *files: tuple[str, bytes]) -> None:
    """Chooses files, of (name, content), with the button; does not wait for their poses."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add images").click()
    chooser.value.set_files(
        [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name, content in files]  # type: ignore[list-item]
    )


def wait_for_people(page: "sync_api.Page", people: int | None = None) -> None:
    """Until the page says that it found so many people, or any."""
    said = re.compile(r"(\d+ people|1 person) found in") if people is None else f"{count(people)} found in"
    expect(page.get_by_role("status")).to_contain_text(said)


def count(people: int) -> str:
    """As the page says it."""
    return "1 person" if people == 1 else f"{people} people"


def try_sample_by_keyboard(page: "sync_api.Page", name: str = "Sample: two people up close") -> None:
    """Tabs to a sample, takes it with Enter, and waits for its poses."""
    sample = page.get_by_role("button", name=name)
    for _ in range(30):
        page.keyboard.press("Tab")
        if sample.evaluate("it => it === document.activeElement"):
            break
    expect(sample).to_be_focused()
    page.keyboard.press("Enter")
    wait_for_people(page)


def set_slider(page: "sync_api.Page", label: str, value: float) -> None:
    """Moves a slider by its label."""
    page.get_by_label(label).fill(str(value))


def hover(page: "sync_api.Page", x: float, y: float) -> str:
    """Moves the pointer to a place, in shares of the picture; what the tip there says, empty without one."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    tip = page.locator("#tip")
    return " ".join(tip.locator("*").all_inner_texts()) if tip.is_visible() else ""


def overlay_colour(page: "sync_api.Page", x: float, y: float, canvas: str = "#canvas") -> Colour | None:
    """Of the drawn poses at a place, in shares of the picture; none where the picture shows through."""
    read = """(canvas, [x, y]) => {
      const [column, row] = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
      return [...canvas.getContext("2d").getImageData(column, row, 1, 1).data];
    }"""
    red, green, blue, opacity = page.locator(canvas).evaluate(read, [x, y])
    return (red, green, blue) if opacity else None


def saved_picture(page: "sync_api.Page") -> tuple[str, np.ndarray]:
    """Name and pixels, (H, W, 3) uint8, of what the page offers as a PNG file."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    content = Path(download.value.path()).read_bytes()
    return download.value.suggested_filename, np.array(Image.open(BytesIO(content)).convert("RGB"))


def copied(page: "sync_api.Page", button: str) -> str:
    """What a button puts into the clipboard, as a person does it (the context needs both permissions)."""
    pressed = page.locator("#" + str(page.get_by_role("button", name=button).get_attribute("id")))
    pressed.click()
    expect(pressed).to_have_text("Copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def scrolls_sideways(page: "sync_api.Page") -> bool:
    """Whether the page is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
