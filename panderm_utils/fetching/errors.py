"""Why something could not be fetched, in a sentence with its remedy."""

import re
from urllib.parse import urlsplit

import requests

from panderm_utils.messages import UserError, printable

BY_HAND = "open {url} in a browser, save the file, and repeat the command with --from and its folder"


class FetchError(UserError):
    """Something could not be fetched; the message says what, why, and what to do."""


class TryAgainError(Exception):
    """A failure that may pass; `pause` is how many seconds the site asks to wait, None if it does not say."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.pause = pause


def check_status(response: requests.Response, url: str) -> None:
    """Raises what an HTTP status means: a FetchError, or a TryAgainError if it may pass."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise TryAgainError(f"the site answers {status} {response.reason}", float(after) if after.isdigit() else None)
    by_hand = BY_HAND.format(url=url)
    if status in (401, 403):
        reason = "a login, a click-through, or a request from another network may be needed"
        raise FetchError(f"{url}: the site refuses the file ({status} {response.reason}); {reason}: {by_hand}")
    if status in (404, 410):
        raise FetchError(f"{url}: there is no such file ({status} {response.reason}); it has moved: {by_hand}")
    if status >= 400:
        raise FetchError(f"{url}: the site answers {status} {response.reason}; {by_hand}")


def explain_failure(error: requests.RequestException, url: str) -> FetchError | TryAgainError:
    """Returns what a failed request means."""
    detail = printable(" ".join(str(error).split()), 200)
    if isinstance(error, requests.exceptions.SSLError):
        return FetchError(
            f"{url}: the certificate of this site cannot be checked ({detail}). Behind the proxy of a hospital or a "
            "company, ask its IT for the root certificate (a .pem file) and set REQUESTS_CA_BUNDLE=/path/to/it.pem; "
            "checking is never switched off"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return FetchError(f"{url}: the proxy refuses or cannot be reached ({detail}); correct HTTPS_PROXY or NO_PROXY")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return FetchError(f"{url}: is not an address ({detail}); correct it in the manifest")
    return TryAgainError(f"no connection to {urlsplit(url).hostname}, or it was cut ({_innermost(error)})")


def _innermost(error: BaseException) -> str:
    """Returns the reason below the layers of requests and urllib3, such as "Failed to resolve 'drive.google.com'"."""
    while isinstance(below := getattr(error, "reason", None) or next(iter(error.args), None), BaseException):
        error = below
    return printable(" ".join(str(error).split()).rpartition("): ")[2], 200)


def explain_page(page: str, url: str, shown: str) -> FetchError:
    """Returns what a web page means that came instead of a file.

    Args:
        page: Its HTML; `url`: where it came from; `shown`: the address that a user knows.
    """
    by_hand, words = BY_HAND.format(url=shown), " ".join(page.split()).lower()
    if "quota exceeded" in words or "too many users have viewed or downloaded" in words:
        return FetchError(
            f"{shown}: Google Drive's download quota of this file is used up; try again after 24 hours, or {by_hand} "
            "(with a Google account, *Make a copy* in your own Drive has a quota of its own)"
        )
    if urlsplit(url).hostname == "accounts.google.com" or "servicelogin" in words:
        return FetchError(f"{shown}: Google Drive asks for a login, so the file is not public; {by_hand}")
    title = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    name = f' "{printable(" ".join(title[1].split()), 100)}"' if title else ""
    return FetchError(f"{shown}: the site sent a web page{name} instead of the file; {by_hand}")
