"""Requests to this machine bypass any proxy."""

from __future__ import annotations

import os
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.error import URLError

import pytest

from orchestration.proxies import spare_loopback


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"up")

    def log_message(self, *about: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("before", ["", "intranet, 10.0.0.0/8"])
def test_a_proxy_is_not_asked_for_the_loopback_address(
    monkeypatch: pytest.MonkeyPatch, before: str
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", before)
    monkeypatch.setenv("no_proxy", before)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/health"
    with pytest.raises(URLError):
        urllib.request.build_opener(urllib.request.ProxyHandler()).open(url, timeout=5)
    spare_loopback()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler())
    assert opener.open(url, timeout=5).read() == b"up"
    server.shutdown()
    server.server_close()


def test_hosts_that_were_exempt_already_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "intranet,localhost")
    monkeypatch.setenv("no_proxy", "*")
    spare_loopback()
    assert os.environ["NO_PROXY"] == "intranet,localhost,127.0.0.1,::1"
    assert os.environ["no_proxy"] == "*"
