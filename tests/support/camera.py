"""A network camera: JPEGs over HTTP as they come, with a password, breaks and silences; an RTSP server that refuses."""

import base64
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from processes import wait_for

from posefleet.data.images import encode_jpeg

USER, PASSWORD = "watcher", "s3same-open"
EVERY = 0.02
"""Seconds between two frames."""


def numbered(number: int) -> np.ndarray:
    """A grey frame, (64, 64, 3), whose value says its number up to 50."""
    return np.full((64, 64, 3), 5 * (number % 51), np.uint8)


class Camera:
    """Serves ``picture(0), picture(1), ...`` to every connection, until the test is over; a context manager.

    Args:
        picture: Frame by number, (H, W, 3) uint8 RGB.
        lengths: Frames of the first connections, each of which then ends; -10: it falls silent after ten; 0: it is
            refused. Later connections do not end.
    """

    def __init__(self, picture: Callable[[int], np.ndarray] = numbered, lengths: tuple[int, ...] = ()) -> None:
        self.sent = 0
        self._picture, self._lengths = picture, list(lengths)
        self._over = threading.Event()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def address(self, password: str = PASSWORD) -> str:
        return f"http://{USER}:{password}@127.0.0.1:{self._server.server_port}/live.mjpg?key={password}"

    @property
    def name(self) -> str:
        """The address without secrets."""
        return f"http://127.0.0.1:{self._server.server_port}/live.mjpg"

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Any) -> None:
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") != expected:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="camera"')
            request.end_headers()
            return
        length = self._lengths.pop(0) if self._lengths else 10**9
        if length == 0:
            request.send_error(503)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            for number in range(abs(length)):
                data = encode_jpeg(self._picture(number))
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                request.wfile.write(head.encode() + data + b"\r\n")
                self.sent += 1
                if self._over.wait(EVERY):
                    return
            while length < 0 and not self._over.wait(EVERY):
                pass
        except OSError:
            return  # the reader has gone

    def wait_until_sent(self, frames: int) -> None:
        """Wait until so many more frames were sent."""
        goal = self.sent + frames
        wait_for(lambda: self.sent >= goal)


def refusing_rtsp() -> int:
    """The port of an RTSP server, alive as long as this process, that takes no password."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=refuse, args=(connection,), daemon=True).start()

    def refuse(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as file:
            while request := [line for line in iter(file.readline, b"\r\n") if line]:
                number = next(line for line in request if line.lower().startswith(b"cseq"))
                status, wanted = b"401 Unauthorized", b'WWW-Authenticate: Basic realm="camera"\r\n'
                if request[0].startswith(b"OPTIONS"):
                    status, wanted = b"200 OK", b"Public: DESCRIBE\r\n"
                file.write(b"RTSP/1.0 " + status + b"\r\n" + number + wanted + b"\r\n")
                file.flush()

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])
