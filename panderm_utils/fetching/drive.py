"""Google Drive: the address of a file's download, and of the one that its page of warnings asks to confirm."""

import re
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit

DOWNLOAD = "https://drive.google.com/uc?export=download&id={id}"
CONFIRMING = ("download-form", "uc-download-link")  # ids in the page that says: too large to scan for viruses


def drive_file(url: str) -> str:
    """Returns the id of a file in a link of Google Drive, "" for any other address."""
    found = re.match(r"https://(?:drive|docs)\.google\.com/(?:file/d/|uc\?(?:.*&)?id=|open\?id=)([\w-]+)", url)
    return found[1] if found else ""


def confirmed_address(page: str, url: str) -> str:
    """Returns the address that a virus-scan warning of Drive leads to, "" if a page is something else."""
    form = _Form()
    form.feed(page)
    if not form.action:
        return ""
    address = urljoin(url, form.action)
    if urlsplit(address).hostname != urlsplit(url).hostname and not _is_google(address):
        return ""  # a page cannot send this program elsewhere
    if not form.fields:
        return address
    return f"{address}{'&' if '?' in address else '?'}{urlencode(form.fields)}"


def _is_google(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return urlsplit(url).scheme == "https" and (host == "google.com" or host.endswith(".google.com"))


class _Form(HTMLParser):
    """The address and the hidden fields of the form or link that confirms."""

    def __init__(self):
        super().__init__()
        self.action, self.fields, self._inside = "", {}, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id") in CONFIRMING and not self.action:
            self.action, self._inside = found.get("action") or found.get("href") or "", tag == "form"
        elif tag == "input" and self._inside and found.get("name"):
            self.fields[found["name"]] = found.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "form"
