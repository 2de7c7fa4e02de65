"""A small Hugging Face hub on the loopback: repositories in memory, behind the hub's HTTP API.

It answers the requests of `from_pretrained` and `load_dataset`: repository information, listings of
files, and files in whole or in part. It can gate a repository, hang up in the middle of a file, and
stall there. `hub_uploads` answers requests that write.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.sae_engine.fresh_process import printed_by
from tests.sae_engine.hub_uploads import answer_upload

Kind = Literal["models", "datasets"]


class Repository(NamedTuple):
    files: Mapping[str, bytes]
    revision: str = "main"
    token: str | None = None
    """Required for the files of a gated repository."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


class Hub:
    """Repositories by kind and name, each with one or more revisions."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[tuple[Kind, str], list[Repository]] = {}
        self.hang_ups: dict[str, int] = {}
        """By suffix of a file's name: how many more times to hang up in the middle of the file."""
        self.stalls: set[str] = set()
        """Suffixes of files that are sent by half, after which the connection stays open."""
        self.on_failure: Callable[[], object] = lambda: None
        """Called once, at the first hang-up or stall."""
        self.closing = threading.Event()
        self.sent: list[str] = []
        """Paths of the requested files, in order."""
        self.written: list[str] = []
        """Methods and paths of the requests that write, in order."""
        self.objects: dict[str, bytes] = {}
        """Large files by SHA-256, of commits or uploaded for one."""
        self.visibility: dict[str, str] = {}
        """Of created repositories, by name."""
        self.refuses: set[str] = set()
        """Parts of the paths of requests that fail, if they write."""

    def add(self, kind: Kind, name: str, files: Mapping[str, bytes], **more: Any) -> None:
        self.repositories.setdefault((kind, name), []).append(Repository(files, **more))

    def find(self, kind: Kind, name: str, revision: str) -> Repository | None:
        for repository in self.repositories.get((kind, name), []):
            if revision in (repository.revision, repository.sha):
                return repository
        return None

    def fail(self) -> None:
        on_failure, self.on_failure = self.on_failure, lambda: None
        on_failure()

    def hangs_up(self, path: str) -> bool:
        for suffix, times in self.hang_ups.items():
            if path.endswith(suffix) and times > 0:
                self.hang_ups[suffix] -= 1
                return True
        return False


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def serve() -> Iterator[Hub]:
    """An empty hub that listens inside the `with` block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()


def ask(code: str, hub: Hub, home: Path, **environment: str) -> Any:
    """Run `code` in a new process that uses `hub`; return its last printed line, parsed as JSON.

    A new process, because the hub's library reads its address and cache folder on import.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    return json.loads(printed_by(code, inherited | own | environment).splitlines()[-1])


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_DELETE(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        """The request's content, sent in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, body: bytes) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        written = answer_upload(self.hub, self.command, parts, body, token)
        if written is not None:
            self._send_json(written[1], written[0])
        elif parts[0] == "api" and len(parts) >= 4:
            self._describe(parts[1:], body)
        elif "resolve" in parts:
            kind: Kind = "datasets" if parts[0] == "datasets" else "models"
            name, revision, path = _split(parts[kind == "datasets" :], "resolve")
            self._file(kind, name, revision, path)
        else:
            self._refuse(404, "RepoNotFound")

    def _describe(self, parts: list[str], body: bytes) -> None:
        """Answer `/api/<kind>/<owner>/<name>[/<what>/<revision>[/<folder>]]`."""
        kind: Kind = "datasets" if parts[0] == "datasets" else "models"
        name, what = "/".join(parts[1:3]), parts[3] if len(parts) > 3 else "revision"
        revision = parts[4] if len(parts) > 4 else "main"
        repository = self.hub.find(kind, name, revision)
        if repository is None:
            known = (kind, name) in self.hub.repositories
            self._refuse(404, "RevisionNotFound" if known else "RepoNotFound")
        elif what == "revision":
            self._send_json(
                {
                    "id": name,
                    "sha": repository.sha,
                    "private": False,
                    "gated": "auto" if repository.token else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [
                        {"rfilename": path, "blobId": hashlib.sha1(content).hexdigest()}
                        for path, content in repository.files.items()
                    ],
                }
            )
        elif what == "tree":
            folder = "/".join(parts[5:])
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            entries = _entries(repository, folder)
            if not recursive:
                depth = folder.count("/") + 1 if folder else 0
                entries = [entry for entry in entries if entry["path"].count("/") == depth]
            if folder and not entries:
                self._refuse(404, "EntryNotFound")
            else:
                self._send_json(entries)
        elif what == "paths-info":
            wanted = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else parse_qs(body.decode())["paths"]
            )
            entries = _entries(repository, "")
            self._send_json([entry for entry in entries if entry["path"] in wanted])
        else:
            self._refuse(404, "EntryNotFound")

    def _file(self, kind: Kind, name: str, revision: str, path: str) -> None:
        repository = self.hub.find(kind, name, revision)
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.token and bearer != repository.token:
            self._refuse(403 if bearer else 401, "GatedRepo")
        elif path not in repository.files:
            self._refuse(404, "EntryNotFound", repository.sha)
        else:
            self.hub.sent.append(path)
            self._send_file(path, repository)

    def _send_file(self, path: str, repository: Repository) -> None:
        content = repository.files[path]
        begin, end = 0, len(content)
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, end) if last else end
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.sha)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        stalls = path.endswith(tuple(self.hub.stalls))
        if stalls or self.hub.hangs_up(path):
            self.wfile.write(content[begin : begin + (end - begin) // 2])
            self.hub.fail()
            if stalls:
                self.hub.closing.wait()
            self.close_connection = True
        else:
            self.wfile.write(content[begin:end])

    def _send_json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if code == "GatedRepo":
            self.send_header("X-Error-Message", "Access to this repository is restricted.")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _split(parts: list[str], word: str) -> tuple[str, str, str]:
    """Name, revision and path from `<owner>/<name>/<word>/<revision>/<path>`."""
    place = parts.index(word)
    return "/".join(parts[:place]), parts[place + 1], "/".join(parts[place + 2 :])


def _entries(repository: Repository, folder: str) -> list[dict[str, Any]]:
    """All files below `folder` and their folders, as the hub lists them."""
    files: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path, content in repository.files.items():
        if folder and not path.startswith(f"{folder}/"):
            continue
        oid = hashlib.sha1(content).hexdigest()
        files.append({"type": "file", "oid": oid, "size": len(content), "path": path})
        while "/" in path:
            path = path.rpartition("/")[0]
            if path != folder:
                folders.add(path)
    return [
        *({"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in sorted(folders)),
        *files,
    ]
