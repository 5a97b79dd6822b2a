"""Network cameras with a password: JPEGs over HTTP as they come, with breaks and silences, and RTSP."""

import base64
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from processes import wait_for

from posefleet.data.images import encode_jpeg

USER, PASSWORD = "watcher", "s3same-open"
EXPECTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SESSION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 33\r\na=rtpmap:33 MP2T/90000\r\na=control:track\r\n"
)
"""What an RTSP camera plays: a transport stream."""
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
        if request.headers.get("Authorization") != EXPECTED:
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


class RtspCamera:
    """Plays an MPEG transport stream over RTSP to each connection, with a password; a context manager.

    Args:
        data: The transport stream, see :func:`transport_stream`.
        seconds: In which it is played.
    """

    def __init__(self, data: bytes = b"", seconds: float = 4.0) -> None:
        self._packets = [data[start : start + 7 * 188] for start in range(0, len(data), 7 * 188)]
        self._pause = seconds / max(1, len(self._packets))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def address(self, password: str = PASSWORD) -> str:
        return f"rtsp://{USER}:{password}@127.0.0.1:{self._port}/1"

    @property
    def name(self) -> str:
        """The address without secrets."""
        return f"rtsp://127.0.0.1:{self._port}/1"

    def __enter__(self) -> "RtspCamera":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._server.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as file:
            while lines := [line.decode() for line in iter(file.readline, b"\r\n") if line]:
                verb = lines[0].split()[0]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                status, more, body = "200 OK", "Session: 1\r\n", ""
                if verb == "OPTIONS":
                    more = "Public: DESCRIBE, SETUP, PLAY\r\n"
                elif headers.get("authorization") != EXPECTED:
                    status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
                elif verb == "DESCRIBE":
                    body = SESSION
                    more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
                elif verb == "SETUP":
                    more += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                file.write(f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{more}\r\n{body}".encode())
                file.flush()
                if verb == "PLAY":
                    self._play(file)
                    return

    def _play(self, file: Any) -> None:
        for number, packet in enumerate(self._packets):
            moment = int(number * self._pause * 90_000) % 2**32
            rtp = struct.pack(">BBHII", 0x80, 33, number % 2**16, moment, 1) + packet
            file.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
            file.flush()
            time.sleep(self._pause)


def transport_stream(path: Path, picture: Callable[[int], np.ndarray] = numbered, frames: int = 100) -> bytes:
    """MPEG-2 video of 64 x 64 pixels, 25 frames a second, in an MPEG transport stream."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mpg2"), 25.0, (64, 64))
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path.read_bytes()
