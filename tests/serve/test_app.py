"""The HTTP interface of a real server: its answers, and what it does with hostile requests."""

import contextlib
import dataclasses
import http.client
import io
import json
import re
import socket
import threading
import urllib.parse
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import browser
import hostile_images
import numpy as np
import pytest
import ray
from PIL import Image
from server import TOKEN, Answer, Server, wait_for

from posefleet.data.images import decode_image, encode_image, encode_jpeg
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.runtime.worker import LocalWorker

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def predictor(registry: str) -> Predictor:
    return Predictor.from_registry("models:/pose@champion", tracking=registry, device="cpu")


def form(files: list[tuple[str, bytes]], boundary: str = "frontier") -> tuple[bytes, str]:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode() + data
        for name, data in files
    ]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def keypoints_of(pose: dict) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([[keypoint["x"], keypoint["y"]] for keypoint in pose["keypoints"]])


# ---------------------------------------------------------------------------------------------------- answers


def test_served_poses_are_those_that_evaluation_scores(
    server: Server, registry: str, people_coco: Path, people_shards: Path
) -> None:
    """Images of several sizes, as they are in the data set; evaluation predicts them in batches."""
    model, experiment = load_model(find_checkpoint("models:/pose@champion", tracking=registry))
    evaluated: dict[int, Poses] = {}
    shards = str(people_shards / "train2017")
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, eval=shards, eval_batch_size=16)
    )
    evaluate(model, experiment, LocalWorker(device="cpu"), keep=evaluated.update)
    images = json.loads((people_coco / "annotations" / "person_keypoints_train2017.json").read_text())["images"]
    assert len({(image["width"], image["height"]) for image in images}) > 2 and len(evaluated) == len(images)
    for image in images:
        expected = evaluated[image["id"]]
        data = (people_coco / "train2017" / image["file_name"]).read_bytes()
        answer = server.post("/v1/poses", data, Content_Type="image/jpeg")
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        (found,) = answer.json["images"]
        assert len(found["poses"]) == len(expected) > 0
        for pose, keypoints, score in zip(found["poses"], expected.keypoints, expected.scores, strict=True):
            assert [keypoint["name"] for keypoint in pose["keypoints"]] == list(COCO17.keypoints)
            assert np.abs(keypoints_of(pose) - keypoints.numpy()).max() <= 1e-4
            assert pose["score"] == pytest.approx(float(score), abs=1e-4)


def test_concurrent_clients_with_mixed_sizes_get_their_own_poses(
    server: Server, predictor: Predictor, photographs: list[bytes]
) -> None:
    expected = [predictor(data).poses.keypoints.numpy() for data in photographs]
    wrong: list[str] = []

    def client(index: int) -> None:
        for step in range(8):
            which = (index + step) % len(photographs)
            answer = server.post("/v1/poses", photographs[which])
            found = [keypoints_of(pose) for pose in answer.json["images"][0]["poses"]] if answer.status == 200 else []
            if len(found) != len(expected[which]) or np.abs(np.array(found) - expected[which]).max() > 1e-3:
                wrong.append(f"image {which}: status {answer.status}")

    clients = [threading.Thread(target=client, args=(index,)) for index in range(12)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not wrong


def test_a_form_with_several_files_is_answered_in_order(server: Server, photographs: list[bytes]) -> None:
    body, kind = form([("wide.jpg", photographs[0]), ("tall.jpg", photographs[1])])
    answer = server.post("/v1/models/pose/poses", body, Content_Type=kind).json
    assert [(image["name"], image["width"], image["height"]) for image in answer["images"]] == [
        ("wide.jpg", 128, 96),
        ("tall.jpg", 96, 128),
    ]
    model = {"name": "pose", "method": "smpr", "version": "1", "keypoint_scores": "pose score, repeated", "note": ""}
    assert answer["model"] == model
    timings = answer["timings"]
    assert 0 < timings["predict"] < timings["total"] and set(timings) == {"decode", "queue", "predict", "total"}


def test_queries_filter_poses_and_keypoints(server: Server, photographs: list[bytes]) -> None:
    everything = server.post("/v1/poses", photographs[0]).json["images"][0]["poses"]
    scores = [pose["score"] for pose in everything]
    assert scores == sorted(scores, reverse=True) and len(scores) > 2
    between = (scores[0] + scores[-1]) / 2
    some = server.post(f"/v1/poses?score_threshold={between}", photographs[0]).json["images"][0]["poses"]
    assert len(some) == sum(score >= between for score in scores)
    assert len(server.post("/v1/poses?max_people=1", photographs[0]).json["images"][0]["poses"]) == 1
    most = server.post("/v1/models/other/poses?max_people=100", photographs[0]).json["images"][0]["poses"]
    assert len(most) == 2, "the model's own bound"
    bare = server.post("/v1/poses?keypoint_threshold=1", photographs[0]).json["images"][0]["poses"]
    assert len(bare) == len(everything) and all(not pose["keypoints"] for pose in bare)


def test_an_overlay_is_the_image_with_poses_on_it(server: Server, photographs: list[bytes]) -> None:
    answer = server.post("/v1/poses?overlay=1", photographs[0])
    assert answer.headers["content-type"] == "image/jpeg"
    drawn, plain = decode_image(answer.body).astype(int), decode_image(photographs[0]).astype(int)
    assert drawn.shape == plain.shape and np.abs(drawn - plain).max() > 50
    body, kind = form([("a.jpg", photographs[0]), ("b.jpg", photographs[1])])
    assert server.post("/v1/poses?overlay=1", body, Content_Type=kind).status == 422


def test_the_note_of_a_run_is_in_the_list_of_models_and_in_every_answer(
    server: Server, photographs: list[bytes]
) -> None:
    note = "Knows nobody – it was not trained."
    listed = server.get("/v1/models").json["models"]
    assert {model["name"]: model["note"] for model in listed} == {"pose": "", "other": note}
    assert server.post("/v1/models/other/poses", photographs[0]).json["model"]["note"] == note
    drawn = server.post("/v1/models/other/poses?overlay=1", photographs[0])
    assert urllib.parse.unquote(drawn.headers["x-model-note"]) == note
    assert "x-model-note" not in server.post("/v1/poses?overlay=1", photographs[0]).headers


def test_coordinates_are_those_of_the_upright_image(server: Server, images: list[np.ndarray]) -> None:
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # viewers turn it clockwise
    Image.fromarray(np.rot90(images[0])).save(stored, "PNG", exif=exif)
    turned = server.post("/v1/poses", stored.getvalue()).json["images"][0]
    upright = server.post("/v1/poses", encode_image(images[0], ".png")).json["images"][0]
    assert (turned["width"], turned["height"]) == (128, 96)
    assert len(turned["poses"]) == len(upright["poses"]) > 0
    for one, other in zip(turned["poses"], upright["poses"], strict=True):
        assert np.abs(keypoints_of(one) - keypoints_of(other)).max() < 1e-3


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_images_of_every_format_are_answered(server: Server, images: list[np.ndarray], kind: str, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(images[0]).convert(mode).save(file, kind)
    answer = server.post("/v1/poses", file.getvalue(), Content_Type="image/anything")
    assert answer.status == 200 and answer.json["images"][0]["width"] == 128


def test_a_single_pixel_and_16_bits_are_answered(server: Server) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(deep, "PNG")
    for data in (deep.getvalue(), encode_image(np.zeros((1, 1, 3), np.uint8), ".png")):
        assert server.post("/v1/poses", data).status == 200


def test_models_are_listed_with_their_version(server: Server) -> None:
    first, second = server.get("/v1/models").json["models"]
    assert (first["name"], first["default"], first["version"], first["method"]) == ("pose", True, "1", "smpr")
    assert (second["name"], second["default"], second["version"]) == ("other", False, "2")
    assert first["data"] is None and first["checkpoint"] is None and first["source"] is None
    trusted = server.get("/v1/models", Authorization=f"Bearer {TOKEN}").json["models"][0]
    assert trusted["data"] == "d" * 64 and trusted["checkpoint"] == "models:/pose/1" and trusted["step"] == 6
    assert first["keypoint_set"] == COCO17.as_dict()
    assert server.request("HEAD", "/healthz").status == 200
    assert server.get("/healthz").json == {"status": "ok"} and server.get("/readyz").json == {"status": "ready"}


@pytest.mark.browser
def test_the_page_draws_what_the_server_finds(server: Server, photographs: list[bytes]) -> None:
    (image,) = server.post("/v1/poses?score_threshold=0.01&max_people=100", photographs[0]).json["images"]
    best = image["poses"][0]
    wrist = next(keypoint for keypoint in best["keypoints"] if keypoint["name"] == "left_wrist")
    x, y = wrist["x"] / image["width"], wrist["y"] / image["height"]
    with browser.open_browser() as opened, browser.open_page(opened, server.address + "/") as page:
        browser.upload(page, ("people.jpg", photographs[0]))
        browser.wait_for_people(page, len(image["poses"]))
        browser.set_slider(page, "Person score", best["score"])
        assert browser.overlay_colour(page, min(x, 0.999), min(y, 0.999)) is not None
        browser.upload(page, ("notes.jpg", b"no picture at all"))
        page.get_by_text("Unsupported Media Type").wait_for()
        browser.try_sample_by_keyboard(page)


# ---------------------------------------------------------------------------------------------------- failures


def bomb() -> bytes:
    header = bytearray(encode_image(np.zeros((4, 4, 3), np.uint8), ".png"))
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)


PICTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
MANY = form([(f"{index}.jpg", b"x") for index in range(1000)])
FIELDS = form([])[0].replace(
    b"--frontier--", b'--frontier\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--frontier--'
)
HOSTILE: dict[str, tuple[bytes, str, int, str]] = {
    "empty": (b"", "image/jpeg", 415, "not_an_image"),
    "text": (b"hello", "image/jpeg", 415, "not_an_image"),
    "pickle": (b"\x80\x04\x95.", "application/octet-stream", 415, "not_an_image"),
    "url": (b"file:///etc/passwd", "", 415, "not_an_image"),
    "truncated JPEG": (encode_jpeg(PICTURE)[:4000], "image/jpeg", 422, "damaged_image"),
    "truncated PNG": (encode_image(PICTURE, ".png")[:4000], "image/png", 422, "damaged_image"),
    "bomb": (bomb(), "image/png", 413, "too_many_pixels"),
    "50 MB": (bytes(50_000_000), "image/jpeg", 413, "body_too_large"),
    "JSON": (b"{}", "application/json", 415, "wrong_content_type"),
    "1000 parts": (*MANY, 413, "too_many_images"),
    "no file": (FIELDS, "multipart/form-data; boundary=frontier", 422, "bad_request"),
    "no boundary": (b"x", "multipart/form-data", 422, "bad_request"),
    "broken form": (b"x" * 100, "multipart/form-data; boundary=frontier", 422, "bad_request"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_body_that_is_no_image_is_refused_at_once(server: Server, photographs: list[bytes], what: str) -> None:
    body, kind, status, reason = HOSTILE[what]
    before = server.cpu_seconds()
    answer = (
        send_until_refused(server, body, kind)
        if len(body) > 1_000_000
        else server.post("/v1/poses", body, **({"Content_Type": kind} if kind else {}))
    )
    took = server.cpu_seconds() - before
    assert (answer.status, answer.json["reason"]) == (status, reason), answer.json
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json) == {"type", "title", "status", "detail", "reason"}
    assert "Traceback" not in answer.json["detail"] and "/work" not in answer.json["detail"]
    assert took < 2, "refused without much work"
    assert server.post("/v1/poses", photographs[0]).status == 200, "other clients are served"


def send_until_refused(server: Server, body: bytes, kind: str) -> Answer:
    """Send a body to a server that may answer before it has read all of it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.putrequest("POST", "/v1/poses")
    connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    with contextlib.suppress(OSError):
        connection.send(body)
    response = connection.getresponse()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def test_a_chunked_body_is_refused_while_it_arrives(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/poses HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        assert b"413" in connection.recv(100)


GARBAGE = (
    "score_threshold=x", "score_threshold=2", "score_threshold=nan", "max_people=0", "max_people=-1",
    "max_people=99999999999999999999", "overlay=perhaps", "keypoint_threshold=-0.1", "unknown=1",
)  # fmt: skip


@pytest.mark.parametrize("query", GARBAGE)
def test_invalid_query_parameters_are_named(server: Server, photographs: list[bytes], query: str) -> None:
    answer = server.post(f"/v1/poses?{query}", photographs[0])
    assert (answer.status, answer.json["reason"]) == (422, "bad_request")
    assert query.partition("=")[0] in answer.json["detail"]


def test_a_hundred_slow_uploads_do_not_block_others(server: Server, photographs: list[bytes]) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(100)]
    for connection in slow:
        connection.sendall(b"POST /v1/poses HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    assert server.post("/v1/poses", photographs[0]).status == 200
    statuses = [connection.recv(100).split()[1] for connection in slow]
    assert set(statuses) == {b"408"}
    for connection in slow:
        connection.close()


def test_hostile_images_hold_up_nobody(server: Server, photographs: list[bytes]) -> None:
    scans = hostile_images.empty_scans(13_000, 1_900)
    texts = hostile_images.png(after=hostile_images.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7_000_000), 9)) * 200)
    comments = hostile_images.REFUSED["GIF of many comments"]()
    animated = hostile_images.apng(40, 200)

    def send(data: bytes) -> tuple[int, str | None]:
        answer = server.post("/v1/poses", data)
        return answer.status, answer.json.get("reason")

    bodies = [scans, texts, comments, animated, photographs[0]] * 4
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(send, bodies))
    refused, answered = (422, "too_costly"), (200, None)
    assert answers == [refused, refused, refused, answered, answered] * 4
    body, kind = form([(f"{index}.png", hostile_images.png(size=(1_900, 1_900))) for index in range(4)])
    answer = server.post("/v1/poses", body, Content_Type=kind)
    assert (answer.status, answer.json["reason"]) == (413, "too_many_pixels")
    assert server.running("pose") == 2


def test_unknown_addresses_give_problem_details(server: Server) -> None:
    for path, status in (("/v1/models/nobody/poses", 404), ("/nowhere", 404), ("/page/../app.py", 404)):
        answer = server.post(path, b"x") if "poses" in path else server.get(path)
        assert answer.status == status and answer.headers["content-type"] == "application/problem+json", path
    assert server.get("/v1/poses").status == 405


def test_changes_need_the_token(server: Server) -> None:
    assert server.post("/v1/models/pose/reload").status == 401
    for wrong in ("Bearer nothing", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
        assert server.post("/v1/models/pose/reload", Authorization=wrong).status == 401
    assert server.reload("pose").json == {"model": "pose", "before": "1", "version": "1", "replicas": 2}
    assert server.reload("nobody").status == 404


def test_every_answer_has_security_headers_and_no_other_origin_may_read_it(server: Server) -> None:
    for path in ("/", "/healthz", "/v1/models", "/nowhere", "/docs"):
        answer = server.get(path, Origin="http://evil.example")
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in answer.headers["content-security-policy"], path
        assert "access-control-allow-origin" not in answer.headers, path
    assert "cdn" not in server.get("/docs").body.decode().lower(), "the page loads nothing from other hosts"


def test_metrics_count_stages_people_and_failures(server: Server, photographs: list[bytes]) -> None:
    server.post("/v1/poses", photographs[0])
    server.post("/v1/poses", b"hello")
    (node,) = ray.nodes()
    host, port = node["NodeManagerAddress"], node["MetricsExportPort"]
    found = ""

    def exported() -> bool:
        nonlocal found
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("GET", "/metrics")
        found = connection.getresponse().read().decode()
        connection.close()
        return 'reason="not_an_image"' in found and 'stage="predict"' in found

    wait_for(exported, 40)
    for name in ("posefleet_stage_ms", "posefleet_batch_images", "posefleet_people", "posefleet_request_ms"):
        assert re.search(rf"^ray_{name}_count.*model=\"pose\"", found, re.M), name


def test_the_openapi_description_is_complete(server: Server) -> None:
    described = json.loads(server.get("/openapi.json").body)
    assert set(described["paths"]) == {
        "/v1/poses", "/v1/models/{name}/poses", "/v1/models", "/v1/models/{name}/reload", "/v1/models/{name}/shadow",
        "/healthz", "/readyz",
    }  # fmt: skip
    post = described["paths"]["/v1/poses"]["post"]
    assert "image/jpeg" in post["requestBody"]["content"] and "application/json" in post["responses"]["200"]["content"]
    assert {parameter["name"] for parameter in post["parameters"]} == {
        "score_threshold", "keypoint_threshold", "max_people", "overlay",
    }  # fmt: skip
