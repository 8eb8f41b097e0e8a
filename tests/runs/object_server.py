"""A real server of objects (moto's S3) on this machine, and faults before it, drawn by a seed."""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from condec.basis import objects

SECRET = "s3cret-Key/of+this+test"
TIMEOUT = 0.6
"""Seconds that a client waits for an answer."""


class Quiet(MotoRequestHandler):
    """Logs nothing."""

    def log(self, *_: Any) -> None:
        """Do nothing."""


class ObjectServer:
    """Objects of S3 at `url`; `fault` says of a request which of the faults below befalls it.

    `counts` are the faults that were. Buckets are made by `bucket`.
    """

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[dict[str, Any]], str | None] = lambda request: None
        self.counts: Counter[str] = Counter()
        self._server = make_server("127.0.0.1", 0, self._serve, True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def bucket(self, name: str) -> str:
        """Make a bucket; return its address."""
        given = {"aws_access_key_id": "id", "aws_secret_access_key": SECRET}
        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **given)
        client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def failing(self, chances: dict[str, float], seed: int) -> Iterator[Counter[str]]:
        """Let faults happen to requests they can happen to, with these chances; count them."""
        draw, self.counts = random.Random(seed), Counter()

        def fault(request: dict[str, Any]) -> str | None:
            for name, chance in chances.items():
                if name in POSSIBLE[_kind(request)] and draw.random() < chance:
                    return name
            return None

        self.fault = fault
        try:
            yield self.counts
        finally:
            self.fault = lambda request: None

    def _serve(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        self.counts["requests"] += 1
        fault = self.fault(request)
        if fault is None:
            return self.app(request, start)
        self.counts[fault] += 1
        connection = request["werkzeug.socket"]
        if fault == "503":
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault == "403":
            start("403 Forbidden", [("Content-Length", str(len(FORBIDDEN)))])
            return [FORBIDDEN]
        if fault == "time-out":
            time.sleep(2 * TIMEOUT)
            return _cut(connection)
        if fault == "slow":
            time.sleep(TIMEOUT / 4)
            return self.app(request, start)
        if fault == "cut PUT":
            request["wsgi.input"].read(int(request["CONTENT_LENGTH"]) // 2)
            return _cut(connection)
        if fault == "lost listing":
            start("200 OK", [("Content-Length", str(len(NOTHING)))])
            return [NOTHING]
        heads: list[Any] = []
        body = b"".join(self.app(request, lambda *head: heads.extend(head)))
        if fault == "lost answer":
            return _cut(connection)
        start(heads[0], [*heads[1]])  # "cut GET": half of what is announced
        return _half(body, connection)


POSSIBLE = {
    "PUT": ("503", "time-out", "slow", "cut PUT", "lost answer"),
    "GET": ("503", "time-out", "slow", "cut GET"),
    "list": ("503", "lost listing"),
    "HEAD": ("503", "time-out"),
    "DELETE": ("503", "time-out", "lost answer"),
}
FORBIDDEN = (
    '<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code>'
    f"<StringToSign>{SECRET}</StringToSign></Error>"
).encode()
NOTHING = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
    b"<IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
)


def _kind(request: dict[str, Any]) -> str:
    query: str = request["QUERY_STRING"]
    kind = "list" if "list-type" in query else "DELETE" if "delete" in query else ""
    return kind or str(request["REQUEST_METHOD"])


def _cut(connection: Any) -> Iterable[bytes]:
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _half(body: bytes, connection: Any) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def settings(url: str, **more: str) -> Iterator[None]:
    """Set what the environment says of the server and its credentials."""
    known = {
        "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_TIMEOUT": f"{TIMEOUT} s",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (known | more).items():
            patch.setenv(name, value)
        soon = {
            "init_backoff": timedelta(seconds=0.01),
            "max_backoff": timedelta(seconds=0.05),
            "base": 2,
        }
        patch.setattr(objects, "RETRIES", {"max_retries": 4, "backoff": soon})
        objects._store.cache_clear()
        yield
    objects._store.cache_clear()
