"""A Hugging Face hub on loopback, with faults: what the real client talks to in the tests.

    with Hub() as hub:
        hub.add("maker/set", {"train.csv": b"..."}, {"refs/convert/parquet": {"default/train/0000.parquet": b"..."}})
        hub.fault("GET .*/train.csv", "reset", times=2)

Content lives in memory. `hub.requests` lists "METHOD /path" of every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

LARGE = (".parquet", ".safetensors", ".bin")  # kept as large files: known by sha256, the others by their git hash
_REPOSITORY = re.compile(r"^/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/([^/]+)|/tree/([^/]+)(/.*)?)?$")
_FILE = re.compile(r"^/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Fault:
    """What happens to the next `times` requests (-1: all) whose "METHOD /path" matches.

    status: that answer; stall: silence of `seconds` first; drop: the connection breaks before an answer, reset:
    after half of the content; hang: silence of `seconds` there; mute: no answer for `seconds`, whatever is asked;
    drip: an answer to whatever is asked, a byte every tenth of a second for `seconds`; close: it ends there
    politely, close12: after 12 MB or at the end; short: half the content, called whole; corrupt: right length,
    wrong bytes.
    """

    match: str
    kind: str
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    headers: Mapping[str, str] | None = None


class Hub:
    """The server; `url` is its endpoint."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.down = False
        self.content_store = ""  # where large files are: the address of a store that hf_xet is sent to
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Be down: connections are refused from now on, open ones are closed."""
        self.down = True
        self._server.shutdown()
        self._server.server_close()

    def add(
        self,
        repository: str,
        files: Mapping[str, bytes],
        refs: Mapping[str, Mapping[str, bytes]] | None = None,
        *,
        kind: str = "datasets",
    ) -> str:
        """Put a repository there (or change it): `files` on main, others on `refs`; returns the commit of main."""
        branches = {"main": dict(files), **{name: dict(content) for name, content in (refs or {}).items()}}
        old = self.repositories.get((kind, repository), {})
        commits = {_commit(content): content for content in [*old.values(), *branches.values()]}
        self.repositories[kind, repository] = commits | branches
        return _commit(branches["main"])

    def fault(self, match: str, kind: str, **options: object) -> None:
        self.faults.append(Fault(match, kind, **options))

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.match, request):
                    fault.times -= 1 if fault.times > 0 else 0
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if self.hub.down:
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        fault = self.hub.take_fault(f"{self.command} {unquote(path)}")
        if fault and fault.kind == "status":
            self._send(fault.status, b'{"error": "injected"}', dict(fault.headers or {}))
        elif fault and fault.kind in ("mute", "drip"):
            self._slow(fault)
        elif path.endswith("/xet-read-token"):
            expires = str(int(time.time()) + 3600)
            names = {"X-Xet-Cas-Url": self.hub.content_store, "X-Xet-Access-Token": "t"}
            self._send(200, b"{}", names | {"X-Xet-Token-Expiration": expires})
        elif match := _REPOSITORY.match(path):
            self._repository(match)
        elif match := _FILE.match(path):
            self._file(match, fault)
        else:
            self._error(404, "NotFound")

    do_HEAD = do_GET

    def _repository(self, match: re.Match[str]) -> None:
        kind, repository, revision, tree, folder = match.groups()
        branches = self.hub.repositories.get((kind, repository))
        if branches is None:
            return self._error(401, "RepoNotFound")
        files = branches.get(unquote(revision or tree or "main"))
        if files is None:
            return self._error(404, "RevisionNotFound")
        if tree:
            prefix = (folder or "").strip("/")
            entries = [_entry(name, content) for name, content in files.items() if name.startswith(prefix)]
            folders = {name.rsplit("/", 1)[0] for name in files if "/" in name}
            entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
            return self._send(200, json.dumps(entries).encode())
        siblings = []
        for name, content in files.items():
            entry = _entry(name, content)
            item = {"rfilename": name, "size": len(content), "blobId": entry["oid"]}
            siblings.append(item | ({"lfs": entry["lfs"]} if "lfs" in entry else {}))
        answer = {
            "_id": "0",
            "id": repository,
            "sha": _commit(files),
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
        return self._send(200, json.dumps(answer).encode())

    def _file(self, match: re.Match[str], fault: Fault | None) -> None:
        kind, repository, revision, name = match.groups()
        branches = self.hub.repositories.get((kind or "models", repository))
        if branches is None:
            return self._error(401, "RepoNotFound")
        if repository in self.hub.gated:
            return self._error(403, "GatedRepo")
        files = branches.get(unquote(revision))
        if files is None:
            return self._error(404, "RevisionNotFound")
        if unquote(name) not in files:
            return self._error(404, "EntryNotFound", _commit(files))
        content = files[unquote(name)]
        entry = _entry(unquote(name), content)
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": _commit(files), "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if self.hub.content_store and "lfs" in entry:
            headers |= {"X-Xet-Hash": tag, "X-Xet-Refresh-Route": f"{self.hub.url}/api/x/xet-read-token"}
        if fault and fault.kind == "stall":
            time.sleep(fault.seconds)
        status, part = 200, content
        asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
            end = min(int(asked[2]) if asked[2] else len(content) - 1, len(content) - 1)
            status, part = 206, content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        if self.command == "HEAD" or fault is None or fault.kind == "stall":
            return self._send(status, part, headers)
        return self._broken(fault, status, part, headers)

    def _slow(self, fault: Fault) -> None:
        self.close_connection = True
        end = time.monotonic() + fault.seconds
        if fault.kind == "mute":
            return time.sleep(fault.seconds)
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            while time.monotonic() < end:
                self.wfile.write(b" ")
                time.sleep(0.1)

    def _broken(self, fault: Fault, status: int, part: bytes, headers: dict[str, str]) -> None:
        kind = fault.kind
        half = part[: 12_000_000 if kind == "close12" else len(part) // 2]
        if kind == "corrupt":
            return self._send(status, half + bytes(255 - byte for byte in part[len(half) :]), headers)
        if kind == "short":
            return self._send(status, half, headers)
        self.close_connection = True
        if kind == "drop":
            return self._reset()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(half)
        self.wfile.flush()
        if kind == "hang":
            time.sleep(fault.seconds)
        if kind == "reset":
            time.sleep(0.05)
            self._reset()
        return None

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, commit: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {}))


def _commit(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _entry(name: str, content: bytes) -> dict:
    entry: dict = {
        "type": "file",
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        "size": len(content),
        "path": name,
    }
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        entry["lfs"]["sha256"] = entry["lfs"]["oid"]
    return entry
