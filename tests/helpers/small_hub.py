"""A hub on loopback: enough of its protocol to list, read, make, and commit to repositories.

Repositories live in memory: files by revision, commits with their messages. `seen` keeps what
was asked, with its headers, so that a test can look for what must not be there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A repository: its commits, newest first, and its files on each branch."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str, str]] = field(default_factory=list)  # id, title, branch
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False

    def commit(self, title: str, files: dict[str, bytes], branch: str = "main") -> str:
        number = hashlib.sha1(f"{len(self.commits)}{title}".encode()).hexdigest()
        self.branches[branch] = {**self.branches[branch], **files}
        self.commits.insert(0, (number, title, branch))
        self.snapshots[number] = dict(self.branches[branch])
        return number

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.branches.get(revision, self.snapshots.get(revision))

    def head(self, revision: str) -> str:
        if revision in self.snapshots:
            return revision
        return next((c for c, _, branch in self.commits if branch == revision), "0" * 40)


@dataclass
class SmallHub:
    """The repositories, what was asked, and the token that may write."""

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    token: str | None = None
    url: str = ""

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """A hub that listens on a free port of loopback."""
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self) -> tuple[str, dict[str, list[str]]]:
        split = urlsplit(self.path)
        self.hub.seen.append((self.command, self.path, dict(self.headers)))
        return unquote(split.path), parse_qs(split.query)

    def do_GET(self) -> None:
        path, query = self.parts()
        if path == "/api/models":
            start = f"{query['author'][0]}/"
            word = query.get("search", [""])[0]
            names = [n for n in self.hub.repos if n.startswith(start) and word in n]
            self.answer([model_info(n, self.hub.repos[n]) for n in names])
            return
        found = re.fullmatch(r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/(.*))?", path)
        if found and found[1] in self.hub.repos:
            self.about(found[1], self.hub.repos[found[1]], found[2] or "")
            return
        found = re.fullmatch(r"/(?:datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if found and found[1] in self.hub.repos:
            self.file(self.hub.repos[found[1]], found[2], found[3])
            return
        self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def about(self, name: str, repo: Repo, rest: str) -> None:
        what, _, revision = rest.partition("/")
        if what == "refs":
            heads = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": repo.head(b)}
                for b in repo.branches
            ]
            self.answer({"branches": heads, "tags": [], "converts": []})
        elif what == "commits":
            self.answer(
                [
                    {
                        "id": number,
                        "title": title.split("\n")[0],
                        "message": title.partition("\n")[2],
                        "authors": [],
                        "date": "2023-01-01T00:00:00.000Z",
                    }
                    for number, title, branch in repo.commits
                    if branch == (revision or "main")
                ]
            )
        elif what == "tree":
            files = repo.files(revision.split("/")[0]) or {}
            self.answer(
                [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
            )
        else:
            self.answer(model_info(name, repo, revision or "main"))

    def file(self, repo: Repo, revision: str, path: str) -> None:
        content = (repo.files(revision) or {}).get(path)
        if content is None:
            self.answer({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
            return
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(content, ETag=tag, X_Repo_Commit=repo.head(revision))

    def do_POST(self) -> None:
        path, _ = self.parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
            return
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            said = f"Invalid credentials {self.headers.get('Authorization')}"
            self.answer({"error": said}, 401, X_Error_Message=said)
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
            return
        found = re.fullmatch(
            r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)/(preupload|commit|branch)/(.+)", path
        )
        if not found or found[1] not in self.hub.repos:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            return
        self.change(self.hub.repos[found[1]], found[1], found[2], found[3], body)

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.hub.repos:
            self.answer({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.repo(name).private = bool(
            wanted.get("private") or wanted.get("visibility") == "private"
        )
        self.answer({"url": f"{self.hub.url}/{name}"})

    def change(self, repo: Repo, name: str, what: str, revision: str, body: bytes) -> None:
        if what == "branch":
            repo.branches.setdefault(revision, dict(repo.branches["main"]))
            self.answer({})
        elif what == "preupload":
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        else:
            rows = [json.loads(line) for line in body.splitlines()]
            head = next(row["value"] for row in rows if row["key"] == "header")
            files = {
                row["value"]["path"]: base64.b64decode(row["value"]["content"])
                for row in rows
                if row["key"] == "file"
            }
            number = repo.commit(head["summary"], files, revision)
            url = f"{self.hub.url}/{name}/commit/{number}"
            self.answer({"commitUrl": url, "commitOid": number, "pullRequestUrl": None})


def model_info(name: str, repo: Repo, revision: str = "main") -> dict[str, Any]:
    files = repo.files(revision) or {}
    return {
        "_id": "0",
        "id": name,
        "modelId": name,
        "private": repo.private,
        "sha": repo.head(revision),
        "lastModified": "2023-05-01T00:00:00.000Z",
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path} for path in files],
    }
