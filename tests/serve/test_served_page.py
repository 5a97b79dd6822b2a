"""The page of the pose server in a real browser, with a server that finds the same two people in every image."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import browser as steps
import numpy as np
import pytest
import uvicorn
from browser import expect, hover, overlay_colour, set_slider, upload, wait_for_people
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image

from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.video_file import VideoFile
from posefleet.platform.visualization.drawing import LEFT, PEOPLE_COLOURS, RIGHT

pytestmark = pytest.mark.browser

PAGE = Path(__file__).resolve().parents[2] / "serve" / "page"
PREFIX = "/fleet"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

FRONTAL = {
    "nose": (0.0, 0.08), "left_eye": (0.02, 0.06), "right_eye": (-0.02, 0.06), "left_ear": (0.04, 0.07),
    "right_ear": (-0.04, 0.07), "left_shoulder": (0.08, 0.2), "right_shoulder": (-0.08, 0.2),
    "left_elbow": (0.13, 0.34), "right_elbow": (-0.13, 0.34), "left_wrist": (0.16, 0.46), "right_wrist": (-0.16, 0.46),
    "left_hip": (0.06, 0.5), "right_hip": (-0.06, 0.5), "left_knee": (0.07, 0.68), "right_knee": (-0.07, 0.68),
    "left_ankle": (0.08, 0.86), "right_ankle": (-0.08, 0.86),
}  # fmt: skip
"""Keypoints of a person who faces the camera, in shares of the image: sideways from their middle, and from the top."""

MIDDLES = (0.3, 0.72)
SCORES = (0.9, 0.25)
FAINT = "left_ankle"
"""The one keypoint with a low score, 0.2."""

SLOW, CROWDED_OUT, PORTRAIT = (300, 240), (310, 240), (240, 320)
"""Sizes of images that the server treats specially."""


def place(person: int, keypoint: str) -> tuple[float, float]:
    """Position of a keypoint, in shares of the image."""
    x, y = FRONTAL[keypoint]
    return MIDDLES[person] + x, y


def poses_in(width: int, height: int) -> list[dict[str, Any]]:
    found = []
    for person, score in enumerate(SCORES):
        keypoints = [
            {
                "name": name,
                "x": place(person, name)[0] * width,
                "y": place(person, name)[1] * height,
                "score": 0.2 if name == FAINT else 0.8,
            }
            for name in COCO17.keypoints
        ]
        xs, ys = [keypoint["x"] for keypoint in keypoints], [keypoint["y"] for keypoint in keypoints]
        found.append({"score": score, "box": [min(xs), min(ys), max(xs), max(ys)], "keypoints": keypoints})
    return found


def model(
    name: str, *, default: bool, ap: float | None, threshold: float, category: str = "person", note: str = ""
) -> dict[str, Any]:
    return {
        "name": name, "default": default, "source": f"models:/{name}@champion", "version": "3", "checkpoint": "c",
        "method": "smpr", "run_id": None, "step": 10, "ap": ap, "data": None, "score_threshold": threshold,
        "keypoint_set": COCO17.as_dict(), "category": category, "note": note,
    }  # fmt: skip


class Server:
    """A pose server without a model; tests change its behaviour while it runs."""

    token = ""
    """The token that requests need; empty: none."""
    rejections = 0
    """How many more requests get 503."""
    holding = False
    """Whether images of the size SLOW wait."""
    asked: list[Request]
    sizes: list[tuple[int, int]]
    """Sizes of the images received."""
    tracked: list[dict[str, Any]]
    """What was sent with frames of films."""
    together = 0
    most_together = 0

    def __init__(self) -> None:
        self.asked, self.sizes, self.tracked = [], [], []
        self.app = FastAPI()
        self.app.middleware("http")(self.guard)
        self.app.get(f"{PREFIX}/")(lambda: FileResponse(PAGE / "index.html"))
        self.app.mount(f"{PREFIX}/page", StaticFiles(directory=PAGE))
        self.app.get(f"{PREFIX}/v1/models")(self.models)
        self.app.post(f"{PREFIX}/v1/models/{{name}}/poses")(self.poses)

    async def guard(self, request: Request, call_next: Any) -> Response:
        self.asked.append(request)
        if self.token and "/v1/" in request.url.path and request.headers.get("authorization") != f"Bearer {self.token}":
            return problem(401, "Unauthorized", "This server wants a token.")
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    def models(self) -> dict[str, Any]:
        other = model("<b>bold", default=False, ap=None, threshold=0.05)
        mice = model("mice", default=False, ap=None, threshold=0.05, category="house mouse", note="<i>Mice</i> only.")
        return {"models": [other, model("people", default=True, ap=0.7123, threshold=0.5), mice]}

    async def poses(self, name: str, request: Request) -> Any:
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            form = await request.form() if "multipart" in request.headers["content-type"] else None
            tracking = json.loads(str(form["tracking"])) if form else None
            image = decode_image(await form["image"].read() if form else await request.body())  # type: ignore[union-attr]
            height, width = image.shape[:2]
            self.sizes.append((width, height))
            while (width, height) == SLOW and self.holding:
                await asyncio.sleep(0.02)
            if (width, height) == CROWDED_OUT and self.rejections:
                self.rejections -= 1
                return problem(503, "Busy", "Too many requests wait.", {"Retry-After": "2"})
        except DataError as error:
            return problem(415, "Not an image", f"{error} <script>alert(1)</script>")
        finally:
            self.together -= 1
        poses = poses_in(width, height)
        tracked = {}
        if tracking:
            self.tracked.append(tracking)
            number = 0 if tracking["state"] is None else tracking["state"]["next"]
            poses[0]["track"], poses[1]["track"] = 4, None
            tracked = {"tracking": {"state": {"seconds": tracking["seconds"], "next": number + 1, "tracks": []}}}
        return {
            "model": {"name": name, "method": "smpr", "version": "3"},
            "images": [{"name": None, "width": width, "height": height, "poses": poses}],
            **tracked,
            "timings": {"decode": 1.25, "queue": 2.0, "predict": 30.0, "total": 34.0},
        }


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": "test"}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, str]]:
    server = Server()
    uvicorn_server = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    while not uvicorn_server.started:
        assert thread.is_alive()
        thread.join(0.02)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    yield server, f"http://127.0.0.1:{port}{PREFIX}/"
    uvicorn_server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with steps.open_browser() as opened:
        yield opened


@pytest.fixture
def server(running: tuple[Server, str]) -> Server:
    server, _ = running
    server.token, server.rejections, server.most_together, server.holding = "", 0, 0, False
    server.asked.clear()
    server.sizes.clear()
    server.tracked.clear()
    return server


@pytest.fixture
def page(browser: Any, running: tuple[Server, str], server: Server) -> Iterator[Any]:
    with steps.open_page(browser, running[1], permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened


def image_file(size: tuple[int, int] = (320, 240), colour: str = "gray", orientation: int = 1) -> bytes:
    """A JPEG of one colour with a black upper left quarter; ``size`` is (width, height) as stored, before EXIF."""
    image = Image.new("RGB", size, colour)
    image.paste("black", (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def assert_poses_are_drawn(page: Any, person: int = 0) -> None:
    assert overlay_colour(page, *place(person, "left_wrist")) == LEFT
    assert overlay_colour(page, *place(person, "right_knee")) == RIGHT
    assert overlay_colour(page, *place(person, "nose")) == PEOPLE_COLOURS[person]
    (x1, y1), (x2, y2) = place(person, "left_hip"), place(person, "left_knee")
    assert overlay_colour(page, (x1 + x2) / 2, (y1 + y2) / 2) == LEFT, "between keypoints lies a limb"
    assert overlay_colour(page, 0.03, 0.95) is None


def test_poses_are_drawn_where_the_people_of_an_uploaded_image_are(page: Any) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    assert_poses_are_drawn(page)
    assert overlay_colour(page, *place(1, "left_wrist")) is None, "below the threshold of the model"
    page.get_by_text("Person 1").click()
    expect(page.get_by_role("row", name="right elbow")).to_contain_text("0.80")
    expect(page.locator("#timings")).to_contain_text("Predict30 ms")
    expect(page.locator("#about")).to_contain_text("AP 0.712")


def test_the_page_speaks_of_what_the_model_finds_and_shows_its_note(page: Any) -> None:
    expect(page.get_by_role("note")).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("mice")
    expect(page.get_by_role("note")).to_have_text("<i>Mice</i> only.")
    expect(page.locator("#score-name")).to_have_text("House mouse score")
    upload(page, ("street.jpg", image_file()))
    expect(page.get_by_role("status")).to_contain_text("2 house mice found in")
    expect(page.locator("#people-title")).to_contain_text("House mice")
    page.get_by_text("House mouse 2").click()
    assert hover(page, *place(0, "left_wrist")) == "left wrist 0.80 · house mouse 1"


def test_two_models_are_shown_side_by_side(page: Any) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    page.get_by_label("beside it").select_option("mice")
    expect(page.locator("#caption-other")).to_have_text("mice: 2 found")
    expect(page.locator("#caption")).to_have_text("people: 1 found")
    expect(page.get_by_role("note")).to_have_text("mice: <i>Mice</i> only.")
    one, other = (page.locator(f"#canvas{end}").bounding_box() for end in ("", "-other"))
    assert one["y"] == other["y"] and one["x"] + one["width"] <= other["x"] and one["width"] == other["width"]
    assert_poses_are_drawn(page)
    assert overlay_colour(page, *place(1, "left_wrist")) is None
    assert overlay_colour(page, *place(1, "left_wrist"), "#canvas-other") == LEFT
    page.get_by_label("beside it").select_option("nothing")
    expect(page.locator("#frame-other")).to_be_hidden()
    assert_poses_are_drawn(page)


def test_a_turned_picture_is_seen_as_a_person_sees_it(page: Any) -> None:
    upload(page, ("phone.jpg", image_file(orientation=6)))
    wait_for_people(page, 1)
    box = page.locator("#canvas").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(240 / 320, abs=0.01)
    assert_poses_are_drawn(page)
    name, saved = steps.saved_picture(page)
    assert name == "phone-poses.png"
    assert saved.shape == (320, 240, 3)
    assert saved[40, -20].max() < 20, "its dark quarter is turned to the upper right"
    assert saved[40, 5].min() > 100
    x, y = place(0, "left_ankle")
    assert np.abs(saved[int(y * 320), int(x * 240)].astype(int) - LEFT).max() < 25


def test_sliders_hide_and_show_without_a_request(page: Any, server: Server) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    before = len(server.asked)
    set_slider(page, "Person score", 0.1)
    wait_for_people(page, 2)
    assert_poses_are_drawn(page, person=1)
    set_slider(page, "Keypoint score", 0.5)
    assert overlay_colour(page, *place(0, FAINT)) is None
    assert overlay_colour(page, *place(0, "left_wrist")) == LEFT
    set_slider(page, "Person score", 0.95)
    expect(page.get_by_role("status")).to_have_text("No people above 0.95; the best candidate scores 0.90.")
    assert overlay_colour(page, *place(0, "left_wrist")) is None
    assert len(server.asked) == before


def test_a_keypoint_under_the_pointer_is_named(page: Any) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    x, y = place(0, FAINT)
    assert hover(page, x + 0.005, y) == "left ankle 0.20 · person 1"
    assert hover(page, 0.97, 0.97) == ""


def test_a_finger_finds_keypoints_too(browser: Any, running: tuple[Server, str], server: Server) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 3}
    with steps.open_page(browser, running[1], **phone) as page:
        assert not steps.scrolls_sideways(page)
        upload(page, ("a-rather-long-name-of-a-picture-from-a-phone-IMG_20240101_000000.jpg", image_file()))
        wait_for_people(page, 1)
        assert not steps.scrolls_sideways(page)
        assert_poses_are_drawn(page)
        canvas = page.locator("#canvas")
        box = canvas.bounding_box()
        assert canvas.evaluate("it => it.width") == pytest.approx(3 * box["width"], abs=2), "crisp"
        x, y = place(0, "right_wrist")
        page.touchscreen.tap(box["x"] + x * box["width"] - 12, box["y"] + y * box["height"])
        expect(page.locator("#tip")).to_contain_text("right wrist")


def test_a_file_that_is_no_image_leaves_the_image_before_in_place(page: Any) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    upload(page, ("notes.jpg", b"These are no pixels."))
    expect(page.get_by_role("alert")).to_contain_text("notes.jpg: Not an image")
    expect(page.get_by_role("alert")).to_contain_text("cannot decode 20 bytes as an image <script>alert(1)</script>")
    wait_for_people(page, 1)
    assert_poses_are_drawn(page)
    assert page.get_by_role("button", name="notes.jpg").count() == 0
    expect(page.get_by_role("button", name="street.jpg")).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_first_file_that_is_no_image_leaves_the_page_ready(page: Any) -> None:
    upload(page, ("notes.jpg", b"These are no pixels."))
    expect(page.get_by_role("alert")).to_contain_text("notes.jpg: Not an image")
    expect(page.get_by_role("button", name="Choose images")).to_be_visible()
    steps.try_sample_by_keyboard(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_keyboard_is_enough(page: Any) -> None:
    steps.try_sample_by_keyboard(page)
    assert_poses_are_drawn(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Sample: a group of seven")).to_be_focused()
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "group.jpg: 1 person")


def test_copied_json_and_command_match_what_is_shown(page: Any, server: Server) -> None:
    upload(page, ("Ann's.jpg", image_file()))
    wait_for_people(page, 1)
    set_slider(page, "Keypoint score", 0.5)
    answer = json.loads(steps.copied(page, "Copy JSON"))
    assert answer["model"] == {"name": "people", "method": "smpr", "version": "3"}
    [image] = answer["images"]
    assert (image["width"], image["height"]) == (320, 240)
    [person] = poses_in(320, 240)[:1]
    person["keypoints"] = [keypoint for keypoint in person["keypoints"] if keypoint["name"] != FAINT]
    assert image["poses"] == [person]
    command = steps.copied(page, "Copy command")
    assert "--data-binary '@Ann'\\''s.jpg'" in command and "-H 'Content-Type: image/jpeg'" in command
    assert f"{PREFIX}/v1/models/people/poses?score_threshold=0.5&keypoint_threshold=0.5&max_people=100'" in command


def test_a_late_answer_does_not_replace_that_of_a_newer_image(page: Any, server: Server) -> None:
    server.holding = True
    upload(page, ("slow.jpg", image_file(SLOW)))
    expect(page.get_by_role("status")).to_have_text("Finding people …")
    upload(page, ("quick.jpg", image_file(PORTRAIT)))
    wait_for_people(page, 1)
    server.holding = False
    page.wait_for_timeout(300)
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "quick.jpg: 1 person")
    assert_poses_are_drawn(page)


def test_a_busy_server_is_asked_again(page: Any, server: Server) -> None:
    server.rejections = 1
    upload(page, ("street.jpg", image_file(CROWDED_OUT)))
    expect(page.get_by_role("status")).to_have_text("The server is busy; asking again in 2 s.")
    wait_for_people(page, 1)
    assert server.sizes == [CROWDED_OUT, CROWDED_OUT]


def test_a_token_is_asked_for_and_kept_in_memory_only(
    browser: Any, running: tuple[Server, str], server: Server
) -> None:
    server.token = "secret"
    with steps.open_page(browser, running[1]) as page:
        expect(page.get_by_role("alert")).to_contain_text("This server wants a token.")
        page.get_by_label("Access token").fill("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Model", exact=True)).to_have_value("people")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_role("button", name="Sample: a group").click()
        wait_for_people(page, 1)
        expect(page.locator("#command")).to_contain_text("Bearer $TOKEN")
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_another_model_predicts_the_same_image(page: Any, server: Server) -> None:
    upload(page, ("street.jpg", image_file()))
    wait_for_people(page, 1)
    page.get_by_label("Model", exact=True).select_option("<b>bold")
    wait_for_people(page, 2)
    expect(page.get_by_label("Person score")).to_have_value("0.05")
    expect(page.locator("#about")).to_contain_text("AP not measured")
    assert server.asked[-1].url.path.endswith("/v1/models/<b>bold/poses")


def test_images_can_be_dropped_and_pasted(page: Any) -> None:
    send = """([event, name, content]) => {
      const carried = new DataTransfer();
      const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
      carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
      const details = { bubbles: true, cancelable: true };
      document.body.dispatchEvent(event === "drop"
        ? new DragEvent("drop", { dataTransfer: carried, ...details })
        : new ClipboardEvent("paste", { clipboardData: carried, ...details }));
    }"""
    for event in ("drop", "paste"):
        page.evaluate(send, [event, f"{event}.jpg", base64.b64encode(image_file()).decode()])
        expect(page.locator("#canvas")).to_have_attribute("aria-label", f"{event}.jpg: 1 person")


def test_frames_of_the_camera_follow_each_other(page: Any, server: Server) -> None:
    page.get_by_role("button", name="Start camera").click()
    expect(page.locator("#rate")).to_contain_text("fps")
    page.wait_for_timeout(300)
    expect(page.locator("#people")).to_contain_text("Person 4")
    assert all(a["state"] is None or a["seconds"] >= a["state"]["seconds"] for a in server.tracked)
    assert server.tracked[-1]["state"] is not None
    page.get_by_role("button", name="Stop camera").click()
    wait_for_people(page, 1)
    expect(page.locator("#rate")).to_be_hidden()
    assert len(server.sizes) > 1 and max(max(size) for size in server.sizes) <= 960
    assert server.most_together == 1
    assert page.locator("#video").evaluate("it => it.srcObject") is None


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds."""
    file = VideoFile(tmp_path_factory.mktemp("films") / "walk", 10.0)
    for index in range(30):
        file.write(np.full((120, 160, 3), 8 * index, np.uint8))
    file.close()
    assert file.path is not None
    return file.path


def test_a_film_plays_stops_and_goes_back(page: Any, server: Server, film: Path) -> None:
    page.locator("#files").set_input_files(film)
    play = page.locator("#play")
    expect(page.locator("#rate")).to_contain_text("fps")
    expect(page.locator("#people")).to_contain_text("Person 4")
    assert overlay_colour(page, *place(0, "nose")) == PEOPLE_COLOURS[4]
    expect(play).to_have_text("Play", timeout=60_000)  # at its end
    assert server.most_together == 1 and set(server.sizes) == {(160, 120)}
    states = [sent["state"] for sent in server.tracked]
    assert states[0] is None and None not in states[1:]
    page.get_by_label("Place in the film").fill("1")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "walk-1.00s.jpg: 1 person")
    assert server.tracked[-1] == {"seconds": 1, "state": None}, "a jump back begins new tracks"
    page.get_by_label("Place in the film").press("ArrowRight")
    expect(page.locator("#film-time")).to_have_text("0:01 / 0:03")
    page.wait_for_timeout(200)
    frames = len(server.tracked)
    page.wait_for_timeout(300)
    assert len(server.tracked) == frames, "a film that stands still sends no frames"
    page.get_by_role("button", name="End film").click()
    wait_for_people(page, 1)
    expect(page.locator("#film")).to_be_hidden()
    page.get_by_role("button", name="walk.webm").press("Enter")
    expect(page.locator("#film")).to_be_visible()


def test_a_film_goes_on_that_was_chosen_while_the_browser_asked_for_the_camera(page: Any, film: Path) -> None:
    page.evaluate(
        """() => {
          navigator.mediaDevices.getUserMedia = () => new Promise((allow) => {
            const canvas = document.createElement("canvas");
            canvas.getContext("2d");
            const stream = canvas.captureStream();
            window.allow = () => { allow(stream); return stream; };
          });
        }"""
    )
    page.get_by_role("button", name="Start camera").click()
    page.locator("#files").set_input_files(film)
    expect(page.locator("#rate")).to_contain_text("fps")
    page.evaluate("() => { window.stream = window.allow(); }")
    page.wait_for_function("() => window.stream.getTracks().every((track) => track.readyState === 'ended')")
    assert page.locator("#video").evaluate("it => it.srcObject") is None
    expect(page.locator("#film")).to_be_visible()
    expect(page.locator("#play")).to_have_text("Play", timeout=60_000)  # it played to its end


def test_a_film_that_the_browser_cannot_play_gets_a_sentence(page: Any) -> None:
    files = [{"name": "broken.mp4", "mimeType": "video/mp4", "buffer": b"These are no frames."}]
    page.locator("#files").set_input_files(files)
    expect(page.get_by_role("alert")).to_contain_text("broken.mp4: This browser cannot play it")
    assert page.get_by_role("button", name="broken.mp4").count() == 0
    steps.try_sample_by_keyboard(page)
