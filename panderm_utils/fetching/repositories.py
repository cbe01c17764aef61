"""The files behind an address of a manifest: a link of Google Drive, an open repository, or the file itself.

Dataverse, figshare, Mendeley Data, Zenodo and Hugging Face list their files with size and digest, a collection of the
ISIC Archive its images with their sizes. The form of that list is read from the code of its server and of its own
client: github.com/ImageMarkup/isic, isic/core/api/image.py and isic/core/pagination.py, and
github.com/ImageMarkup/isic-cli, isic_cli/io/http.py. The collections' numbers are from secondary sources.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlencode, urlsplit

from panderm_utils.fetching import drive
from panderm_utils.fetching.downloads import Remote, read_json
from panderm_utils.fetching.errors import FetchError

HUGGING_FACE = os.environ.get("HF_ENDPOINT", "https://huggingface.co")  # as in huggingface_hub
FIGSHARE = "https://api.figshare.com/v2"
MENDELEY = "https://data.mendeley.com/public-api"
ZENODO = "https://zenodo.org/api"
GITHUB = "https://raw.githubusercontent.com"
ISIC = "https://api.isic-archive.com/api/v2"
ISIC_PAGE = 100  # images; the server sends no more at once
DATAVERSES = {"10.7910/DVN": "https://dataverse.harvard.edu", "10.11588/data": "https://heidata.uni-heidelberg.de"}


def list_remote(url: str, name: str, wanted: Iterable[str] = ()) -> list[Remote]:
    """Returns the files to download from an address.

    Args:
        name: What to save a file as whose name the address does not tell.
        wanted: Names at the site, of which the ones that it has are returned; empty: all.

    Raises:
        FetchError: The site does not list its files, or lacks a wanted one.
    """
    wanted = list(wanted)
    if file := drive.drive_file(url):
        return [Remote(name, drive.DOWNLOAD.format(id=file), url)]
    for pattern, listing in LISTINGS.items():
        if found := re.match(pattern, url):
            try:
                files = list(listing(url, *found.groups()))
            except (KeyError, TypeError) as error:
                raise FetchError(f"{url}: the site's list of files has another form: {error!r}") from error
            return _select(files, wanted, url)
    return [Remote(unquote(PurePosixPath(urlsplit(url).path).name) or name, url, url)]


def _select(files: list[Remote], wanted: list[str], url: str) -> list[Remote]:
    """Returns the wanted files; a name without suffix matches the only file of that stem."""
    if not wanted:
        return files
    selected = []
    for name in wanted:
        same = [f for f in files if f.name == name] or [f for f in files if PurePosixPath(f.name).stem == name]
        if len(same) != 1:
            there = ", ".join(sorted(f.name for f in files)[:20])
            raise FetchError(f"{url}: has {len(same) or 'no'} file {name}; it has {there}: correct `files` there")
        selected += same
    return selected


def _dataverse(url: str, prefix: str, rest: str) -> Iterable[Remote]:
    base = f"{DATAVERSES[prefix]}/api"
    version = read_json(f"{base}/datasets/:persistentId/?persistentId=doi:{prefix}/{rest}", url)
    for entry in version["data"]["latestVersion"]["files"]:
        file = entry["dataFile"]
        address = f"{base}/access/datafile/{file['id']}"
        if file.get("originalFileFormat"):  # a table that Dataverse has converted: size and digest differ
            name = file.get("originalFileName") or file["filename"]
            yield Remote(name, f"{address}?format=original", url, file.get("originalFileSize"))
        else:
            yield Remote(file["filename"], address, url, file.get("filesize"), _digest("md5", file.get("md5")))


def _zenodo(url: str, record: str) -> Iterable[Remote]:
    for file in read_json(f"{ZENODO}/records/{record}", url)["files"]:
        yield Remote(file["key"], file["links"]["self"], url, file.get("size"), file.get("checksum", ""))


def _figshare(url: str, article: str) -> Iterable[Remote]:
    for file in read_json(f"{FIGSHARE}/articles/{article}/files", url):
        digest = _digest("md5", file.get("computed_md5") or file.get("supplied_md5"))
        yield Remote(file["name"], file["download_url"], url, file.get("size"), digest)


def _mendeley(url: str, dataset: str, version: str) -> Iterable[Remote]:
    for file in read_json(f"{MENDELEY}/datasets/{dataset}/files?folder_id=root&version={version}", url):
        content = file["content_details"]
        digest = _digest("sha256", content.get("sha256_hash"))
        yield Remote(file["filename"], content["download_url"], url, file.get("size"), digest)


def _hugging_face(url: str, repository: str) -> Iterable[Remote]:
    for file in read_json(f"{HUGGING_FACE}/api/models/{repository}/tree/main", url):
        if file["type"] == "file":
            digest = _digest("sha256", (file.get("lfs") or {}).get("oid"))
            address = f"{HUGGING_FACE}/{repository}/resolve/main/{quote(file['path'])}"
            yield Remote(file["path"], address, url, file.get("size"), digest)


def _github(url: str, repository: str, commit: str, path: str) -> Iterable[Remote]:
    yield Remote(unquote(PurePosixPath(path).name), f"{GITHUB}/{repository}/{commit}/{path}", url)


def _isic(url: str, collection: str) -> Iterable[Remote]:
    """Yields the images of a collection; the server sends a page at a time, and the address of the next one."""
    page = f"{ISIC}/images/search/?{urlencode({'collections': collection, 'limit': ISIC_PAGE})}"
    folder, seen = f"isic_collection_{collection}", set()
    while page:
        if urlsplit(page).netloc != urlsplit(ISIC).netloc or page in seen:
            raise FetchError(f"{url}: its list goes on at {page}, which is another site or was read before")
        seen.add(page)
        answer = read_json(page, url)
        for image in answer["results"]:
            name, file = image["isic_id"], image["files"]["full"]
            record = f"{ISIC}/images/{name}/"
            yield Remote(f"{name}.jpg", file["url"], url, file["size"], folder=folder, record=record)
        page = answer["next"]


def renewed(remote: Remote) -> Remote:
    """Returns an image of the ISIC Archive with a new address: those of a list are signed, and expire."""
    try:
        return replace(remote, url=read_json(remote.record, remote.page)["files"]["full"]["url"])
    except (KeyError, TypeError) as error:
        raise FetchError(f"{remote.page}: what the site knows of an image has another form: {error!r}") from error


def _digest(algorithm: str, value: str | None) -> str:
    return f"{algorithm}:{value.lower()}" if value else ""


LISTINGS: dict[str, Callable[..., Iterable[Remote]]] = {
    r"https://doi\.org/(10\.7910/DVN|10\.11588/data)/(\w+)$": _dataverse,
    r"https://doi\.org/10\.5281/zenodo\.(\d+)$": _zenodo,
    r"https://doi\.org/10\.6084/m9\.figshare\.(\d+)": _figshare,
    r"https://doi\.org/10\.17632/(\w+)\.(\d+)$": _mendeley,
    r"https://github\.com/([\w.-]+/[\w.-]+)/blob/([0-9a-f]{40})/(.+)$": _github,
    r"https://api\.isic-archive\.com/collections/(\d+)/$": _isic,
    r"https://huggingface\.co/([\w.-]+/[\w.-]+)$": _hugging_face,
}
