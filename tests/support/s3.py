"""A real S3 server (moto's) on loopback that checks signatures, and can be told to misbehave."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

KEY, SECRET = "AKIAEXAMPLEEXAMPLE01", "a-secret-that-appears-nowhere-else-0123456"
_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...


class S3:
    """`requests` are (method, path?query) of all; `fail` (method, query part, status, code) answers those."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str]] = []
        self.fail: tuple[str, str, int, str] | None = None
        self.hold_after = -1  # parts that are answered; those behind hang
        self.held = threading.Event()
        self.release = threading.Event()
        self._parts = 0
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        self.requests.append((method, f"{environ['PATH_INFO']}?{query}"))
        code = self._refusal(environ, method, query)
        if code is not None:
            status, name = code
            start(f"{status} no", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [_ERROR.format(code=name).encode()]
        if method == "PUT" and "partNumber" in query:
            self._parts += 1
            if 0 <= self.hold_after < self._parts:
                self.held.set()
                self.release.wait(60)
        found: Iterable[bytes] = self._app(environ, start)
        return found

    def _refusal(self, environ: dict[str, Any], method: str, query: str) -> tuple[int, str] | None:
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return 403, "InvalidAccessKeyId"
        if self.fail and self.fail[0] == method and self.fail[1] in f"{environ['PATH_INFO']}?{query}":
            return self.fail[2], self.fail[3]
        return None

    def parts_sent(self) -> int:
        return sum(method == "PUT" and "partNumber" in path for method, path in self.requests)

    @cached_property
    def client(self) -> Any:
        return boto3.session.Session(
            aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        ).client("s3", endpoint_url=self.url)

    def objects(self, bucket: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [each["Key"] for each in found]


@contextmanager
def s3_server(*buckets: str) -> Iterator[S3]:
    s3 = S3()
    thread = threading.Thread(target=s3._server.serve_forever, daemon=True)
    thread.start()
    try:
        for bucket in buckets:
            s3.client.create_bucket(Bucket=bucket)
        yield s3
    finally:
        for bucket in buckets:
            for key in s3.objects(bucket):
                s3.client.delete_object(Bucket=bucket, Key=key)
            s3.client.delete_bucket(Bucket=bucket)
        s3.release.set()
        s3._server.shutdown()
        s3._server.server_close()
        thread.join()


def credentials(path: Path, key: str = KEY) -> Path:
    path.write_text(f"{key}\n{SECRET}\n")
    path.chmod(0o400)
    return path
