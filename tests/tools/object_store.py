"""A server of S3 on this machine for tests: moto behind a proxy that counts requests and has faults on demand."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
KEY, SECRET = "a-key-of-this-test", "a-secret-of-this-test"
"""Credentials: moto takes any."""

Fault = Literal["none", "away", "throttled", "cut", "lost answers"]
"""away: hangs up at once; throttled: every second request is told 503; cut: hangs up after half of every second body,
either way; lost answers: does what every second write asks, and hangs up instead of saying so."""


@dataclass(frozen=True)
class Request:
    """One that came."""

    method: str
    key: str
    """Of the object; of a listing its prefix."""
    query: dict[str, list[str]]

    @property
    def lists(self) -> bool:
        """Whether it asks what there is."""
        return "list-type" in self.query

    @property
    def lists_all(self) -> bool:
        """Whether it asks for every object below a storage, not for the names at one level or one run's."""
        return self.lists and "delimiter" not in self.query and self.key.count("/") < 2


@dataclass
class ObjectStore:
    """What a test sees of the server."""

    url: str
    fault: Fault = "none"
    delay_s: float = 0.0
    """Every answer comes so late."""
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    """No picture is sent before so many are asked for at once."""
    requests: list[Request] = field(default_factory=list)
    every_second: dict[str, int] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def is_due(self, method: str) -> bool:
        """True for every second request of a kind."""
        self.every_second[method] = self.every_second.get(method, 0) + 1
        return self.every_second[method] % 2 == 1


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket, which ends with the block."""
    import logging

    from moto.moto_api import state_manager  # noqa: F401 - its backends are made on import
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    request.add_header(
        "Authorization", "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"
    )
    urllib.request.urlopen(request).close()
    store = ObjectStore(url="")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store, port))
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"").close()
        moto.stop()


def _handler(store: ObjectStore, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            place = urlsplit(self.path)
            query = parse_qs(place.query, keep_blank_values=True)
            key = unquote(place.path).removeprefix(f"/{BUCKET}").lstrip("/")
            request = Request(self.command, query.get("prefix", [key])[0], query)
            store.requests.append(request)
            length = int(self.headers.get("Content-Length", 0))
            is_due = store.is_due(self.command)
            if store.fault == "away":
                self._hang_up()
                return
            if store.fault == "cut" and is_due and length:
                self.rfile.read(length // 2)
                self._hang_up()
                return
            body = self.rfile.read(length)
            time.sleep(store.delay_s)
            if key.endswith(".png"):
                with contextlib.suppress(threading.BrokenBarrierError):
                    store.together.wait()
            if store.fault == "throttled" and is_due:
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            status, headers, content = self._ask(body)
            if store.fault == "lost answers" and is_due and self.command in ("PUT", "POST"):
                self._hang_up()
                return
            if store.fault == "cut" and is_due and len(content) > 1:
                self._answer(status, headers, content, sent=len(content) // 2)
                self._hang_up()
                return
            self._answer(status, headers, content)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(upstream):
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                unwanted = ("connection", "transfer-encoding", "content-length")
                headers = {
                    name: value
                    for name, value in answer.getheaders()
                    if name.lower() not in unwanted
                }
                if self.command == "HEAD":
                    headers["Content-Length"] = answer.getheader("Content-Length", "0")
                return answer.status, headers, content

        def _answer(
            self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:sent])

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None: ...

    return Handler


@contextlib.contextmanager
def using(store: ObjectStore, cache: object) -> Iterator[None]:
    """Let this process be a machine of its own: its mirrors are in the folder `cache`."""
    wanted = store.environment | {"BOXSEG_CACHE": str(cache)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
