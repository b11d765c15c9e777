"""A server on this machine that speaks the protocol of the Hugging Face hub: HEAD and GET, ETag, commit, Range, and
what a repository holds."""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Hub:
    """Files by (repository, name). `breaks`: of how many GETs the connection ends in the middle. `served`: what is sent
    in place of a file, under its hash. `requests`: (method, name, range) and `revisions`: (name, revision) of all.
    `listings`: what was asked of repositories. `has_sizes`: whether answers say how long they are.
    `authorizations`: what requests for files gave."""

    def __init__(self, files, is_large=True):
        self.files, self.is_large = files, is_large
        self.breaks, self.served, self.requests, self.revisions, self.listings = 0, {}, [], [], []
        self.has_sizes, self.authorizations = True, set()

    def etag(self, data):
        return (
            hashlib.sha256(data).hexdigest()
            if self.is_large
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )

    def headers(self, data, start, body):
        """What an answer says of a file, of which it has the bytes from `start` on."""
        yield "ETag", f'"{self.etag(data)}"'
        yield "X-Repo-Commit", COMMIT
        yield "Accept-Ranges", "bytes"
        if self.is_large:
            yield "X-Linked-Etag", f'"{self.etag(data)}"'
        if self.is_large and self.has_sizes:
            yield "X-Linked-Size", str(len(data))
        yield ("Content-Length", str(len(body))) if self.has_sizes else ("Connection", "close")
        if start:
            yield "Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"

    def listed(self, path):
        """What a repository holds, as the hub's own program asks for it."""
        repository, kind, _ = re.split("/(revision|tree)/", path.partition("/api/models/")[2], maxsplit=1)
        told = [
            {"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": self.etag(data)}
            for (owner, name), data in self.files.items() if owner == repository
        ]  # fmt: skip
        return json.dumps(told if kind == "tree" else {"id": repository, "sha": COMMIT, "siblings": told}).encode()


@contextlib.contextmanager
def running(hub):
    """The address of a server that has the files of `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def listing(self):
            hub.listings.append(self.path)
            body = hub.listed(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self, with_body):
            if self.path.startswith("/api/models/"):
                self.listing()
                return
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            hub.revisions.append((name, urllib.parse.unquote(revision)))
            hub.requests.append((self.command, name, self.headers.get("Range")))
            hub.authorizations.add(self.headers.get("Authorization"))
            data = hub.files.get((repository, name))
            if data is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            body = hub.served.get(name, data)[start:]
            self.send_response(206 if start else 200)
            for header, value in hub.headers(data, start, body):
                self.send_header(header, value)
            self.end_headers()
            if not with_body:
                return
            if hub.breaks:
                hub.breaks -= 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
