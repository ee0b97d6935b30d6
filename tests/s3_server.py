"""An S3 server on loopback (moto), and a proxy before it that answers badly as often as it is told to."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY_ID, SECRET = "test-id", "test-secret"

# What the proxy may do to a request, besides "403 CODE" and "404 CODE" and the like, which answer that.
#   500, 503    answer so, without passing the request on (503 with S3's SlowDown document)
#   reset       drop the connection, without passing the request on
#   failed      pass the request on, and answer 500 all the same
#   lost        pass the request on, and drop the connection instead of answering
#   cut         pass the request on, and drop the connection in the middle of the answer's body
#   stall       do not answer until the client gives up
FAULTS = ("500", "503", "reset", "failed", "lost", "cut")
Decide = Callable[[str, str], str | None]  # (method, path) -> fault, or None to pass the request on


def environment(endpoint: str) -> dict[str, str]:
    """The variables that make s3:// mean this server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def moto_server() -> Iterator[str]:
    """A server without buckets, as a process of its own; gives its endpoint."""
    for _ in range(5):  # another process may take the port before the server does
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if _listens(server, port):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            server.terminate()
            server.wait()
    raise TimeoutError("moto's server did not start")


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(300):
        if server.poll() is not None:
            return False
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return server.poll() is None
    return False


def make_bucket(endpoint: str, name: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def at_random(share: float, seed: int, faults: Sequence[str] = FAULTS) -> Decide:
    """Do one of `faults` to this share of all requests."""
    source, lock = random.Random(seed), threading.Lock()

    def decide(method: str, path: str) -> str | None:
        with lock:
            return source.choice(faults) if source.random() < share else None

    return decide


def in_order(*faults: str | None) -> Decide:
    """Do these to the next requests, one each; then pass everything on."""
    waiting, lock = list(faults), threading.Lock()

    def decide(method: str, path: str) -> str | None:
        with lock:
            return waiting.pop(0) if waiting else None

    return decide


class FaultyProxy:
    """Passes requests on to a server, but for what `decide` says. `seen` holds (method, path, fault).

    `page` limits the keys in one page of a listing, which has a thousand otherwise.
    """

    def __init__(self, upstream: str, port: int) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.endpoint = f"http://127.0.0.1:{port}"
        self.decide: Decide = in_order()
        self.page: int | None = None
        self.seen: list[tuple[str, str, str | None]] = []


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy before `upstream` that does nothing bad until its `decide` is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.decide(self.command, self.path)
            proxy.seen.append((self.command, self.path, fault))
            if fault == "stall":
                self.connection.recv(1)  # until the client hangs up
                self.close_connection = True
            elif fault == "reset":
                self.drop()
            elif fault is not None and fault[0].isdigit():
                self.refuse(*fault.split(" ", 1))
            else:
                self.pass_on(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def refuse(self, status: str, code: str = "") -> None:
            code = code or ("SlowDown" if status == "503" else "InternalError")
            # S3 repeats what was signed, so that people can compare.
            signed = f"<StringToSign>{self.headers.get('Authorization')}</StringToSign>"
            document = f"<Error><Code>{code}</Code><Message>As asked.</Message>{signed}</Error>".encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(document)

        def pass_on(self, body: bytes, fault: str | None) -> None:
            server = http.client.HTTPConnection(proxy.upstream, timeout=60)
            path = self.path
            if proxy.page and "list-type=2" in path:
                path += f"&max-keys={proxy.page}"
            server.request(self.command, path, body, dict(self.headers.items()))
            response = server.getresponse()
            payload = response.read()
            server.close()
            if fault == "failed":
                return self.refuse("500")
            if fault == "lost" or (fault == "cut" and len(payload) < 2):
                return self.drop()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else len(payload)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(payload[: len(payload) // 2])
                return self.drop()
            self.wfile.write(payload)
            return None

        def drop(self) -> None:
            """Reset, not close: the client must not take it for a complete answer."""
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def shutdown_request(self, request) -> None:
            self.close_request(request)  # shutting down first would make a reset look like an end

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are what this proxy is for."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultyProxy(upstream, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
