"""An HTTP proxy in front of a server, whose faults a test switches on and off."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Literal

Fault = Literal["none", "down", "slow", "drop"]
"""down: hangs up at once; slow: waits a second first; drop: of each kind of request other than GET the server does the
first as asked, but its answer is lost."""


class FaultyProxy:
    """Passes requests on to a port of this machine, as far as `fault` lets it."""

    def __init__(self, upstream_port: int) -> None:
        self.fault: Fault = "none"
        self.dropped: set[str] = set()
        """Kinds of requests whose first answer was lost."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self._read_body()
                fault, request = proxy.fault, kind_of(self.command, self.path)
                if fault == "down":
                    self._hang_up()
                    return
                if fault == "slow":
                    time.sleep(1.0)
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
                headers = {
                    **self.headers,
                    "Host": f"127.0.0.1:{upstream_port}",
                    "Connection": "close",
                }
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                if fault == "drop" and self.command != "GET" and request not in proxy.dropped:
                    proxy.dropped.add(request)
                    self._hang_up()
                    return
                self.send_response(answer.status)
                self.send_header(
                    "Content-Type", answer.getheader("Content-Type", "application/json")
                )
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _read_body(self) -> bytes:
                """What the request sends, also in chunks, as an empty file is."""
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                del self.headers["Transfer-Encoding"]
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def _hang_up(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def kind_of(method: str, path: str) -> str:
    """Method and path without ids, of files that are sent only their kind: `POST /api/2.0/mlflow/runs/create`."""
    return f"{method} {PurePosixPath(path).suffix if method == 'PUT' else re.sub('[0-9a-f]{32}', 'ID', path)}"


@contextlib.contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    """A proxy that is closed with the block."""
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
