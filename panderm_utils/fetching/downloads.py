"""Downloads a file over HTTP: resumed after any stop, retried with growing pauses, checked before it gets its name."""

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import requests
from tqdm import tqdm

from panderm_utils import disk
from panderm_utils.fetching.drive import confirmed_address
from panderm_utils.fetching.errors import (
    BY_HAND,
    FetchError,
    TryAgainError,
    check_status,
    explain_failure,
    explain_page,
)

PAUSES = (1, 2, 4, 8, 16, 32)  # seconds before each retry; counted anew once more bytes have come
LONGEST_PAUSE = 120  # seconds, whatever a site asks for
TIMEOUT = (20, 60)  # seconds to connect, and without a byte
CHUNK = 1 << 14  # bytes written at once, and lost at most when a connection is cut
MAX_PAGE = 1 << 20  # bytes of a web page that are looked at
PART = ".part"  # what a file is called until it is whole and checked


@dataclass(frozen=True)
class Remote:
    """A file that a site offers.

    Attributes:
        name: As it is saved; a suffix is added for an archive without one.
        page: The address that a user knows, for messages.
        size: In bytes, if known; `digest`: as the publisher gives it, such as "md5:9e10...", "" if it does not.
        folder: Where it is saved below the folder of downloads, if it is one of the many files of a collection.
        record: The address of what the site knows of it, with a new `url` once that has expired; "" if it does not.
    """

    name: str
    url: str
    page: str
    size: int | None = None
    digest: str = ""
    folder: str = ""
    record: str = ""


def new_session() -> requests.Session:
    """Returns a session, with the proxies and certificates of the environment."""
    session = requests.Session()
    session.headers.update({"User-Agent": "panderm_utils (research; python-requests)", "Accept-Encoding": "identity"})
    return session


def download(remote: Remote, part: Path, position: int = 0, session: requests.Session | None = None) -> None:
    """Completes the partial file `part`; continues what an earlier call left of it.

    Args:
        position: Of its progress bar; `session`: to keep connections to sites of many small files.

    Raises:
        FetchError: The site refuses, sends something else, or fails again and again; the partial file stays.
        disk.DiskFullError: There is too little room for the rest.
    """
    with contextlib.nullcontext(session) if session else new_session() as session:
        retrying(lambda: _continue(session, remote, part, position), remote.page, lambda: _size(part))


def read_json(url: str, page: str):
    """Returns the content of a JSON document; FetchError if the site does not send one."""

    def read():
        with new_session() as session, _opened(session, url, page, {"Accept": "application/json"}) as (_, chunks):
            return b"".join(chunks)

    try:
        return json.loads(retrying(read, page))
    except ValueError as error:
        raise FetchError(f"{page}: the site's list of files is not JSON; {BY_HAND.format(url=page)}") from error


def retrying(function: Callable, page: str, progress: Callable[[], int] = lambda: 0):
    """Returns `function()`, called again after a pause as long as its failures may pass."""
    failures = 0
    while True:
        before = progress()
        try:
            return function()
        except requests.RequestException as failure:
            error = explain_failure(failure, page)
        except TryAgainError as failure:
            error = failure
        if not isinstance(error, TryAgainError):
            raise error
        failures = 0 if progress() > before else failures
        if failures == len(PAUSES):
            by_hand = BY_HAND.format(url=page)
            raise FetchError(
                f"{page}: {error}, {failures + 1} times; repeat the command later, it continues; or {by_hand}"
            )
        pause = min(error.pause or PAUSES[failures], LONGEST_PAUSE)
        tqdm.write(f"{page}: {error}; again in {pause:.0f} s", file=sys.stderr)
        time.sleep(pause)
        failures += 1


def _continue(session: requests.Session, remote: Remote, part: Path, position: int) -> None:
    """Appends what is missing of a partial file; begins anew if the site has another file now, or cannot continue."""
    at, noted = _size(part), _read_note(part)
    if at and noted.get("url") != remote.url:
        at = 0
    if at and at == noted.get("size"):
        return
    headers = {"Range": f"bytes={at}-"} | ({"If-Range": noted["tag"]} if noted.get("tag") else {}) if at else {}
    with _opened(session, remote.url, remote.page, headers) as (response, chunks):
        if response.status_code == 416:  # the file is now shorter than the part
            part.unlink(missing_ok=True)
            raise TryAgainError("the file has changed at the site")
        total, at = _total(response, at)
        tag = _tag(response)
        if at and (noted.get("size") not in (None, total) or noted.get("tag", tag) != tag):  # `If-Range` was ignored
            part.unlink(missing_ok=True)
            raise TryAgainError("the file has changed at the site")
        lacking = (total or remote.size or 0) - at
        if lacking > disk.free(part.parent):
            raise disk.DiskFullError(disk.no_room(remote.name, lacking, part.parent))
        disk.write_file(_note(part), json.dumps({"url": remote.url, "size": total, "tag": tag}))
        with (
            disk.room_for(remote.name, lacking, part.parent),
            part.open("ab" if at else "wb", buffering=0) as file,
            tqdm(
                total=total,
                initial=at,
                desc=remote.name,
                position=position,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=bool(remote.folder) or None,  # no bar where stderr is not a terminal, or of a small file
            ) as bar,
        ):
            for chunk in chunks:
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise TryAgainError(f"the connection ended after {_size(part):,} of {total:,} bytes")


@contextlib.contextmanager
def _opened(session: requests.Session, url: str, page: str, headers: dict[str, str]):
    """Yields a response that holds a file, and the chunks of its content.

    A web page in its place is followed if it asks to confirm, and else is an error. It is known by its first bytes too:
    a quota page may come under the name and the type of an archive.
    """
    for _ in range(3):
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            chunks = response.iter_content(CHUNK)
            first = next(chunks, b"")
            text = "" if response.status_code == 206 else _page_text(response, first, chunks)
            if further := text and confirmed_address(text, response.url):
                url = further
                continue
            failure = explain_page(text, response.url, page) if text else None
            if failure and (response.status_code == 200 or "quota" in str(failure)):  # the latter under any status
                raise failure
            if response.status_code != 416:  # the file is shorter than the part
                check_status(response, page)
            yield response, chain([first], chunks)
            return
    raise FetchError(f"{page}: the site asks to confirm the download again and again; {BY_HAND.format(url=page)}")


def _page_text(response: requests.Response, first: bytes, chunks: Iterator[bytes]) -> str:
    """Returns the text of a response that is a web page, "" if it is a file; `first` is its first chunk."""
    begins = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not begins.startswith((b"<!doctype html", b"<html")) and "text/html" not in response.headers.get(
        "Content-Type", ""
    ):
        return ""
    content = first
    while len(content) < MAX_PAGE and (chunk := next(chunks, b"")):
        content += chunk
    return content.decode("utf-8", "replace") or "<html>"


def _total(response: requests.Response, at: int) -> tuple[int | None, int]:
    """Returns the size of the whole file, None if unknown, and the byte that the response begins at."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != at:
            raise FetchError(f"{response.url}: the site continues at another byte than asked; remove the .part file")
        return (None if found[2] == "*" else int(found[2])), at
    length = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return (int(length) if length.isdigit() and plain else None), 0


def _tag(response: requests.Response) -> str:
    """Returns what tells this version of a file from another, "" if the site does not say; fit for `If-Range`."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Returns a file's digest in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def discard(part: Path) -> None:
    """Removes a partial file and what is noted of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict:
    try:
        return json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
