"""An S3 API on loopback: moto's server in a process of its own, behind a gate that tests steer.

    with S3() as s3:
        s3.make_bucket("traces")
        ...  # storage_options=s3.options(), uri s3://traces/…; then look at s3.requests()

moto knows every key and looks before a conditional put in a step of its own (of two writers at once both may win).
The gate makes good what tests rely on: keys that are unknown, ended or may only read are refused, and of several
conditional puts of an object one wins. It counts what comes, and breaks on demand.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT_KEY = "root"
"""The access key that may do everything and never ends."""

REGION = "us-east-1"
QUIET_FOR = 0.3
LOST_FOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: method, path within the API, and the status of the answer (0: none yet)."""

    method: str
    path: str
    status: int
    key: str


class S3:
    """Runs from `with` to its end."""

    def __enter__(self) -> "S3":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends with its input
        self._process.wait(timeout=10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def options(self, key: str = ROOT_KEY, **more: str) -> dict[str, str]:
        """Storage options as deltalake takes them."""
        return {
            "endpoint_url": self.endpoint,
            "allow_http": "true",
            "region": REGION,
            "access_key_id": key,
            "secret_access_key": "secret",
            **more,
        }

    def environment(self, key: str = ROOT_KEY) -> dict[str, str]:
        """The same in the usual environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket; its URI."""
        authorization = f"AWS4-HMAC-SHA256 Credential={ROOT_KEY}/20261122/{REGION}/s3/aws4_request"
        asked = Request(
            f"{self.endpoint}/{name}", method="PUT", headers={"Authorization": authorization}, data=b""
        )
        with urlopen(asked):
            return f"s3://{name}"

    def add_key(
        self,
        key: str,
        *,
        seconds: float = 3600,
        under: str = "",
        reads_only: Sequence[str] = (),
    ) -> None:
        """Let a key in for some time, to what begins with `under` (bucket/object); it may not write `reads_only`."""
        self._steer(key={"name": key, "seconds": seconds, "under": under, "reads_only": list(reads_only)})

    def break_down(
        self, *, status: int = 503, times: int = 0, seconds: float = 0, hang: float = 0, matching: str = ""
    ) -> None:
        """Answer the next requests, or those of the next seconds, with a status, or only after `hang` seconds.

        `matching`: only those whose "METHOD path" holds it.
        """
        self._steer(
            fault={"status": status, "times": times, "seconds": seconds, "hang": hang, "matching": matching}
        )

    def lose_reply(self, method: str, ending: str) -> None:
        """Let the next request whose path ends so be done, and its reply come when nobody waits any more."""
        self._steer(lost={"method": method, "ending": ending})

    def mend(self) -> None:
        """No more faults, and no more replies that are lost."""
        self.break_down(times=0)
        self._steer(lost=None)

    def requests(self) -> list[Asked]:
        """What came since the last look, oldest first."""
        with urlopen(f"{self.endpoint}/_gate") as answered:
            return [Asked(**asked) for asked in json.load(answered)]

    def all_requests(self) -> list[Asked]:
        """The same, once no more come: deltalake reads a log ahead, and what it does not need may come late."""
        asked: list[Asked] = []
        while came := self.requests():
            asked += came
            time.sleep(QUIET_FOR)
        return asked

    def _steer(self, **orders: Any) -> None:
        with urlopen(Request(f"{self.endpoint}/_gate", method="POST", data=json.dumps(orders).encode())):
            pass


# --- the process

Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]


class Gate:
    """A WSGI application in front of moto's."""

    def __init__(self, behind: Application) -> None:
        self._behind = behind
        self._asked: list[dict[str, Any]] = []
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._fault: dict[str, Any] = {"times": 0, "until": 0.0}
        self._lost: Mapping[str, str] | None = None
        self._steering = threading.Lock()
        self._putting = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_gate":
            return self._steered(environ, start)
        key = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        asked = {"method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"], "status": 0, "key": key}
        with self._steering:
            self._asked.append(asked)

        def told(status: str, *rest: Any) -> Any:
            asked["status"] = int(status[:3])
            return start(status, *rest)

        fault = self._due_fault(f"{asked['method']} {asked['path']}")
        if fault is not None:
            time.sleep(fault["hang"])
            if not fault["hang"]:
                return _refused(environ, told, fault["status"], "ServiceUnavailable")
        reason = self._refusal(key, asked["method"], asked["path"])
        if reason is not None:
            return _refused(environ, told, 403, reason)
        if environ.get("HTTP_IF_NONE_MATCH") == "*":
            with self._putting:
                answer: Iterable[bytes] = list(self._behind(environ, told))
        else:
            answer = self._behind(environ, told)
        if self._is_lost(asked["method"], asked["path"]):
            time.sleep(LOST_FOR)
        return answer

    def _refusal(self, name: str, method: str, path: str) -> str | None:
        if name == ROOT_KEY:
            return None
        key = self._keys.get(name)
        if key is None:
            return "InvalidAccessKeyId"
        if time.monotonic() > key["until"]:
            return "ExpiredToken"
        what = path.lstrip("/")
        listing = "/" not in what  # its prefix stands in the query
        if not listing and not what.startswith(key["under"]):
            return "AccessDenied"
        writing = method not in ("GET", "HEAD")
        if writing and any(what.startswith(prefix) for prefix in key["reads_only"]):
            return "AccessDenied"
        return None

    def _is_lost(self, method: str, path: str) -> bool:
        with self._steering:
            lost = self._lost
            if lost is None or method != lost["method"] or not path.endswith(lost["ending"]):
                return False
            self._lost = None
            return True

    def _due_fault(self, what: str) -> Mapping[str, Any] | None:
        with self._steering:
            fault = self._fault
            if fault["times"] <= 0 and time.monotonic() > fault["until"]:
                return None
            if fault["matching"] not in what:
                return None
            fault["times"] -= 1
            return dict(fault)

    def _steered(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        with self._steering:
            if environ["REQUEST_METHOD"] == "GET":
                asked, self._asked = self._asked, []
                body = json.dumps(asked).encode()
            else:
                orders = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                if key := orders.get("key"):
                    self._keys[key["name"]] = {**key, "until": time.monotonic() + key["seconds"]}
                self._lost = orders.get("lost", self._lost)
                if fault := orders.get("fault"):
                    self._fault = {**fault, "until": time.monotonic() + fault["seconds"]}
                    if not fault["seconds"]:
                        self._fault["until"] = 0.0
                body = b"{}"
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _refused(environ: dict[str, Any], start: Start, status: int, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    start(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bare", action="store_true", help="moto's server without the gate")
    bare = parser.parse_args().bare
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Quiet: whoever wants to know asks the gate."""

    moto = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, moto if bare else Gate(moto), threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
