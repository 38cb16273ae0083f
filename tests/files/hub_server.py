"""A model hub of a few endpoints on a real socket: repositories, one commit at a time, files by revision."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Commits of each repository and branch, oldest first: (id, path → bytes)."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, list[tuple[str, dict[str, bytes]]]]] = {}
        self.private: set[str] = set()
        self.seen: list[str] = []
        self.tokens: list[str | None] = []
        self.down = False

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that is the newest of a branch, or has this id."""
        branches = self.commits.get(repo, {})
        if revision in branches:
            return branches[revision][-1]
        every = [commit for branch in branches.values() for commit in branch]
        return next((commit for commit in every if commit[0] == revision), None)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _missing(self, code: str) -> None:
            self._answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path, self._body()
            hub.seen.append(f"POST {path}")
            hub.tokens.append(self.headers.get("Authorization"))
            if hub.down:
                self._answer({"error": "closed for today"}, 403)
                return
            if path == "/api/repos/create":
                about = json.loads(body)
                repo = "/".join(filter(None, [about.get("organization") or "me", about["name"]]))
                if repo in hub.commits:
                    self._answer({"error": "exists", "url": self._url(repo)}, 409)
                    return
                hub.commits[repo] = {"main": [("0" * 40, {})]}
                hub.private |= {repo} if about.get("private") or about.get("visibility") == "private" else set()
                self._answer({"url": self._url(repo), "name": repo, "id": repo})
            elif path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                names = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._answer({"files": names})
            elif "/commit/" in path:
                repo, branch = path.removeprefix("/api/models/").split("/commit/")
                lines = [json.loads(line) for line in body.splitlines()]
                new = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                branches = hub.commits[repo]
                branch = unquote(branch)
                before = branches.setdefault(branch, [branches["main"][-1]])
                oid = hashlib.sha1(body).hexdigest()
                before.append((oid, before[-1][1] | new))
                self._answer({"commitUrl": f"{self._url(repo)}/commit/{oid}", "commitOid": oid, "success": True})
            else:
                self._missing("EntryNotFound")

        def _url(self, repo: str) -> str:
            return f"http://{self.headers['Host']}/{repo}"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append(f"{self.command} {path}")
            where = next((word for word in ("/revision/", "/tree/", "/resolve/") if word in path), "/revision/")
            repo, _, rest = path.removeprefix("/api/models").strip("/").partition(where)
            revision, _, name = (rest or "main").partition("/")
            if repo not in hub.commits:
                self._missing("RepoNotFound")
                return
            found = hub.files(repo, revision)
            if found is None:
                self._missing("RevisionNotFound")
                return
            oid, files = found
            etag = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
            if where == "/revision/":
                self._answer({"id": repo, "sha": oid, "siblings": [{"rfilename": n} for n in files], "tags": []})
            elif where == "/tree/":
                self._answer([{"type": "file", "path": n, "size": len(d), "oid": etag[n]} for n, d in files.items()])
            elif name in files:
                self._answer(files[name], headers={"ETag": f'"{etag[name]}"', "X-Repo-Commit": oid})
            else:
                self._missing("EntryNotFound")

        do_HEAD = do_GET

    return Handler


@contextmanager
def serving() -> Iterator[tuple[str, Hub]]:
    """Run a hub; give its address, and what it holds."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
