"""Opens image files and finds them below an image root; imports no torch, so tables can be checked without it."""

import errno
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image

from panderm_utils.messages import UserError

# An explicit list: otherwise PIL would pass a file that claims to be PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".jp2")
# What PIL's decoders may raise on damaged files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(UserError):
    """An image cannot be used; the message is one string, `file: reason`, so worker processes can pass it on."""


def open_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Returns an image as 8-bit RGB, as upstream's `PIL.Image.open(path).convert("RGB")` does.

    As upstream, it ignores the EXIF orientation and converts grey, palette, CMYK and transparent images by PIL's rules
    (transparency is dropped, not blended). The one difference: 16-bit grey is scaled to 8 bits (high byte, as PIL
    reads 16-bit RGB), because PIL's own conversion depends on its version and may clip to white. `content` is the
    file's bytes, if already read.

    Raises:
        ImageError: The file is missing, empty, not an image, truncated, larger than PIL.Image.MAX_IMAGE_PIXELS, or has
            floating-point pixels; the message names the file and the reason.
    """
    return decode(path, to_rgb, content)


def decode(path: str | Path, convert: Callable, content: bytes | None = None):
    """Returns `convert(image, path)` of an image file that PIL has opened and loaded; raises as `open_image`."""
    try:
        with Image.open(path if content is None else BytesIO(content), formats=FORMATS) as image:
            refuse_bomb(path, image.size)
            image.load()
            return convert(image, path)
    except ImageError:
        raise
    except DECODING_ERRORS as error:
        raise ImageError(f"{path}: {image_error_reason(path, error)}") from error


def refuse_bomb(path: str | Path, size: tuple[int, int]) -> None:
    """Raises ImageError if the header declares more pixels than PIL.Image.MAX_IMAGE_PIXELS (89 million)."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise ImageError(
            f"{path}: {size[0]} x {size[1]} pixels, more than the limit of {limit:,}; "
            "scale the file down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )


def to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Returns an opened image of any mode as 8-bit RGB; `open_image` lists the rules."""
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no defined range; save the image with 8 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError(f"{path}: 32-bit pixels outside 0..65535; save the image with 8 bits per channel")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    # Converting a palette with per-colour alpha to RGB warns; via RGBA the colours are the same, without a warning.
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def image_error_reason(path: str | Path, error: BaseException) -> str:
    """Returns why PIL could not read a file, with a remedy."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as problem:
        return f"the file cannot be read ({problem.strerror})"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "more pixels than PIL.Image.MAX_IMAGE_PIXELS; scale the file down, or raise the limit if you trust it"
    if not head:
        return "the file is empty; download it again"
    if head.lstrip()[:1] == b"<" or head.startswith(b"version https://git-lfs"):
        return "the file is a web page or a Git LFS pointer, not an image: the download failed; download it again"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC images are not supported; convert the file to JPEG or PNG"
    if "truncated" in str(error):
        return f"the file is truncated ({error}); download it again"
    detail = re.sub(r"<_io\.BytesIO[^>]*>", "the file", str(error).replace(str(path), "the file"))
    return f"the file is not a readable image ({type(error).__name__}: {detail})"


def oddity(path: str | Path) -> str:
    """Returns what is unusual about an image that can be decoded: mode, depth, EXIF rotation; "" if nothing."""
    with Image.open(path, formats=FORMATS) as image:
        found = []
        if image.mode != "RGB":
            found.append(f"mode {image.mode}, converted to RGB")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in (0, 1):
            found.append(f"EXIF orientation {orientation} ignored, as upstream does")
    return "; ".join(found)


MAX_NAME = 1000  # characters of an image name
NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def unsafe(name: str) -> str:
    """Returns why an image name is not allowed below an image root, "" if it is; checks the text only."""
    if not name:
        return "the image name is empty"
    if "\0" in name:
        return "the image name contains a NUL character"
    if len(name) > MAX_NAME:
        return f"the image name has {len(name):,} characters"
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "the path is absolute"
    if ".." in name.replace("\\", "/").split("/"):
        return "the path leaves the image root via `..`"
    return ""


class ImageFolder:
    """Finds images below a root, and never outside it; lists each folder once, which is fast on network disks."""

    def __init__(self, root: str | Path):
        self.root = Path(root).resolve()
        self._listings: dict[str, dict[str, str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, tuple[str | None, str]] = {"": ("", "")}

    def find(self, name: str, suffix: str = "") -> tuple[str | None, str]:
        """Returns the file of an image name, relative to the root, and a remark ("" if the name matches exactly).

        A name that differs from the file only in case, or lacks `suffix`, is found, and the remark says so. If no file
        is found, or only one outside the root, the first value is None and the remark is the reason.
        """
        reason = unsafe(name)
        if reason:
            return None, reason
        folder, _, base = name.replace("\\", "/").rpartition("/")
        folder, remark = self._find_folder("/".join(part for part in folder.split("/") if part not in ("", ".")))
        if folder is None:
            return None, remark
        reason = ""
        for candidate in (base, base + suffix) if suffix else (base,):
            found, note = self._find_entry(folder, candidate)
            if found is not None and (kind := self._kind(found)) != "file":
                reason = f"the file is missing (there is a {kind} with its name)"
            elif found is not None or note:
                added = "" if candidate == base else f"{suffix} added to the name"
                return found, "; ".join(filter(None, (remark, note, added)))
        return None, reason or self._hint(folder, base)

    def names(self, folder: str = "") -> list[str]:
        """Returns the names in a folder below the root."""
        return list(self._list(folder))

    def _find_folder(self, folder: str) -> tuple[str | None, str]:
        if folder not in self._folders:
            above, _, base = folder.rpartition("/")
            parent, remark = self._find_folder(above)
            if parent is not None:
                parent, note = self._find_entry(parent, base)
                remark = "; ".join(filter(None, (remark, note)))
                if parent is None and not remark:
                    remark = f"the folder {folder} is missing"
            self._folders[folder] = (parent, remark)
        return self._folders[folder]

    def _find_entry(self, folder: str, base: str) -> tuple[str | None, str]:
        listing, note = self._list(folder), ""
        if base not in listing:
            matches = self._folded[folder].get(fold(base), [])
            if len(matches) != 1:
                return None, f"{len(matches)} files differ only in case: {', '.join(matches)}" if matches else ""
            base, note = matches[0], f"the file is spelled {matches[0]}"
        path = f"{folder}/{base}" if folder else base
        # realpath, not resolve, which raises an error on links to themselves
        if listing[base] == "link" and not Path(os.path.realpath(self.root / path)).is_relative_to(self.root):
            return None, "the path leaves the image root via a symbolic link"
        return path, note

    def _kind(self, path: str) -> str:
        """Returns "file" if the path can be read as one, else what it is: opening a pipe would block forever."""
        folder, _, base = path.rpartition("/")
        kind = self._listings[folder][base]
        if kind == "link":
            place = self.root / path
            kind = "file" if place.is_file() else "folder" if place.is_dir() else "broken link"
        return kind

    def _list(self, folder: str) -> dict[str, str]:
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as entries:
                    listing = {entry.name: _entry_kind(entry) for entry in entries}
            except OSError as error:
                if error.errno not in NO_FOLDER:
                    raise
                listing = {}
            folded: dict[str, list[str]] = {}
            for name in listing:
                folded.setdefault(fold(name), []).append(name)
            self._listings[folder], self._folded[folder] = listing, folded
        return self._listings[folder]

    def _hint(self, folder: str, base: str) -> str:
        stem = fold(PurePosixPath(base).stem)
        twins = [f"{stem}{suffix}" for suffix in SUFFIXES if f"{stem}{suffix}" in self._folded[folder]]
        near = [self._folded[folder][twin][0] for twin in twins]
        return f"the file is missing (there is {near[0]})" if near else "the file is missing"


def _entry_kind(entry: os.DirEntry) -> str:
    """Returns an entry's kind from the listing alone: a further query per image would be slow on network disks."""
    if entry.is_symlink():
        return "link"
    if entry.is_file(follow_symlinks=False):
        return "file"
    return "folder" if entry.is_dir(follow_symlinks=False) else "pipe or device"


def walk_files(root: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Yields the path below a root of each file, with `/`, but not behind symbolic links to folders.

    Left out are the hidden `._x.jpg`, which are no images, that macOS keeps beside each x.jpg of an archive.
    """
    for folder, _, names in os.walk(root, onerror=onerror):
        below = Path(folder).relative_to(root).as_posix()
        for name in names:
            if not name.startswith("._"):
                yield name if below == "." else f"{below}/{name}"


class ImageIndex:
    """All images below a folder, or those named, found by whatever a user's CSV calls them; `ImageFolder` is stricter.

    Attributes:
        root: The folder.
        files: The images' paths relative to the root, sorted.
    """

    def __init__(self, root: Path, files: Iterable[str] | None = None):
        self.root, files = root, walk_files(root) if files is None else files
        self.files = sorted(name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES)
        self._exact = set(self.files)
        self._loose: dict[str, str | None] = {}  # looser spelling -> path, None if several files share it
        for file in self.files:
            path = PurePosixPath(file)
            for key in {fold(text) for text in (file, file.removesuffix(path.suffix), path.name, path.stem)}:
                self._loose[key] = None if key in self._loose else file

    def find(self, value: str) -> str | None:
        """Returns the file that a cell names exactly, without case or suffix, or by its last parts; None if unclear."""
        if value in self._exact:
            return value
        parts = [part for part in fold(value.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if (file := self._loose.get("/".join(parts[start:]))) is not None:
                return file
        return None


def fold(name: str) -> str:
    """Returns a file name case-folded and composed (NFC), as case-insensitive disks and macOS compare names."""
    return unicodedata.normalize("NFC", name).casefold()
