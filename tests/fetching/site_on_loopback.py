"""A web site on this machine that behaves as the real ones do: ranges, pages in place of files, cut connections."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

QUOTA_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
WARNING_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p>Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="5f&amp;1"></form></body></html>"""


class Site:
    """Serves `files`: path -> bytes; `troubles`: path -> what happens instead, one entry per request, in order.

    A trouble is (status, body); ("cut", n): the connection ends after n bytes of the answer; ("stall", n): it goes
    silent after them; or "no ranges".
    `requests` lists (path with query, Range header).
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.troubles: dict[str, list] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.types: dict[str, str] = {}
        self.together: threading.Barrier | None = None  # files of Drive are sent once so many are asked for
        self.confirm: set[str] = set()  # Drive ids whose download asks to confirm
        self.collections: dict[str, dict[str, bytes]] = {}  # of the ISIC Archive: number -> id -> image
        self.signature = 1  # in the addresses of its images; older ones have expired
        self.page_size = 100
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                site.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that goes away
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def publish(self, path: str, content) -> str:
        self.files[path] = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.url + path

    def answer(self, handler: BaseHTTPRequestHandler):
        address = urlsplit(handler.path)
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        path, query = address.path, parse_qs(address.query)
        if path in ("/uc", "/download"):
            (name,) = query["id"]
            path = f"/drive/{name}"
            if name in self.confirm and "confirm" not in query:
                page = WARNING_PAGE.format(action=f"{self.url}/download", id=name)
                return self.send(handler, 200, page.encode(), {"Content-Type": "text/html; charset=utf-8"})
            if name in self.confirm:
                assert query == {"id": [name], "export": ["download"], "confirm": ["t"], "uuid": ["5f&1"]}
        if path.startswith("/isic/"):
            return self.answer_isic(handler, path, query)
        if "Signature" in query and query["Signature"] != [str(self.signature)]:
            return self.send(
                handler, 403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            )
        trouble = self.troubles[path].pop(0) if self.troubles.get(path) else None
        if isinstance(trouble, tuple) and trouble[0] not in ("cut", "stall"):
            status, body, *headers = trouble
            return self.send(handler, status, body, *headers)
        if path not in self.files and handler.path in self.files:
            path = handler.path
        if path not in self.files:
            return self.send(handler, 404, b"not found")
        content = self.files[path]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Content-Type": self.types.get(path, "application/octet-stream")}
        status, start = 200, 0
        if wanted and trouble != "no ranges" and handler.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = trouble[1] if isinstance(trouble, tuple) else None
        if self.together and path.startswith("/drive/"):
            self.together.wait()
        waits = isinstance(trouble, tuple) and trouble[0] == "stall"
        return self.send(handler, status, content[start:], headers, cut, waits)

    def answer_isic(self, handler, path, query):
        """As github.com/ImageMarkup/isic does: pages by a cursor, the count on the first alone, signed addresses."""
        images = {name: image for images in self.collections.values() for name, image in images.items()}
        if path == "/isic/images/search/":
            (number,), limit = query["collections"], min(int(query["limit"][0]), self.page_size)
            at = int(base64.b64decode(query["cursor"][0])) if "cursor" in query else 0
            names = [*self.collections[number]]
            cursor = base64.b64encode(str(at + limit).encode()).decode()
            answer = {
                "count": None if at else len(names),
                "next": f"{self.url}{path}?collections={number}&cursor={cursor}&limit={limit}"
                if len(names) > at + limit
                else None,
                "previous": None,
                "results": [self.isic_image(name, images[name]) for name in names[at : at + limit]],
            }
        else:
            name = path.removeprefix("/isic/images/").removesuffix("/")
            answer = self.isic_image(name, images[name])
        return self.send(handler, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def isic_image(self, name, image):
        self.files[f"/s3/{name}.jpg"] = image
        full = {"url": f"{self.url}/s3/{name}.jpg?Signature={self.signature}", "size": len(image)}
        files = {"full": full, "thumbnail_256": {"url": f"{self.url}/s3/small", "size": 1}}
        clinical = {"clinical": {"diagnosis_1": "Benign"}, "acquisition": {"pixels_x": 1, "pixels_y": 1}}
        known = {"isic_id": name, "copyright_license": "CC-BY", "attribution": "A clinic", "public": True}
        return {**known, "files": files, "metadata": clinical}

    @staticmethod
    def send(handler, status, body, headers=None, cut=None, waits=False):
        handler.send_response(status)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body if cut is None else body[:cut])
        if waits:
            handler.rfile.read(1)  # until the client goes away
        if cut is not None:
            handler.close_connection = True
