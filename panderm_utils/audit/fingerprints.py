"""Fingerprints of image files: SHA-256 of the bytes, SHA-256 of the pixels, and a perceptual hash of 256 bits.

The perceptual hash is that of ImageHash's `phash` with hash_size 16 (the image in grey at 64 x 64 pixels, the lowest
16 x 16 frequencies of its discrete cosine transform), but for one point: a bit is the sign of its frequency, not
whether it exceeds their median (one or two bits in a hundred differ). So the hash of a mirrored or turned image
follows from that of the image, and needs no second reading. It is these few lines and no dependency, because ImageHash
would bring PyWavelets for a hash not used. 256 bits, because 64 do not tell two dermoscopic images apart: each is a
dark disc on a bright ground.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from scipy.fft import dctn
from tqdm.auto import tqdm

from panderm_utils.data import ImageError, open_image
from panderm_utils.encoders import IDENTITY, SHARD, ShardCache, read_identified

SIDE = 16  # frequencies in each direction
BITS = SIDE * SIDE
PIXELS = 4 * SIDE  # side of the small image
DIGEST = 32  # bytes
FORMAT = 1  # raise it when a code change changes fingerprints


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The fingerprints of a list of images.

    Attributes:
        files: SHA-256 of each file's bytes, `[N, 32]` uint8; pixels: of its decoded pixels and size, the same.
        signs: The perceptual hash as signs, `[N, 256]` int8, 1 or -1: two hashes agree in (256 + a @ b) / 2 bits.
        unreadable: Index -> reason, of the images that cannot be read, whose fingerprints are zeros.
    """

    files: np.ndarray
    pixels: np.ndarray
    signs: np.ndarray
    unreadable: dict[int, str]


def fingerprint_files(
    paths: Sequence[str], names: Sequence[str], cache: str | Path | None = None, label: str = "fingerprints"
) -> Fingerprints:
    """Returns the fingerprints of image files, in their order, cached by content as features are.

    Args:
        paths: The N image files.
        names: Their names in the cache.
        cache: The folder whose `fingerprints/` is the cache; None caches nothing.
        label: Text of the progress bar.
    """
    about = {"format": FORMAT, "bits": BITS, "pillow": PIL.__version__}
    width = DIGEST + BITS // 8
    store = (
        None
        if cache is None
        else ShardCache(Path(cache) / "fingerprints", about, width, np.uint8, len(paths), what="fingerprints")
    )
    rows, files = np.zeros((len(paths), width), np.uint8), np.zeros((len(paths), DIGEST), np.uint8)
    unreadable = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(paths), desc=label, unit="image", delay=1) as bar:
        for at in range(0, len(paths), SHARD):
            part = slice(at, at + SHARD)
            found = store.load(names[part], paths[part]) if store else None
            if found is None:
                made = list(pool.map(_read, paths[part]))  # PIL and hashlib work outside Python's lock
                unreadable |= {at + i: one for i, one in enumerate(made) if isinstance(one, str)}
                readable = [(i, *one) for i, one in enumerate(made, at) if not isinstance(one, str)]
                for i, identity, row in readable:
                    files[i], rows[i] = identity[0], row
                if store and len(readable) == len(made):
                    identities = np.array([identity for _, identity, _ in readable], dtype=IDENTITY)
                    store.save(names[part], rows[part], identities, "fingerprints")
            else:
                rows[part], identities, _ = found
                files[part] = identities["digest"]
            bar.update(len(paths[part]))
    bits = np.unpackbits(rows[:, DIGEST:], axis=1)
    signs = 2 * bits.astype(np.int8) - 1
    signs[list(unreadable)] = 0
    return Fingerprints(files, rows[:, :DIGEST], signs, unreadable)


def fingerprint(image: Image.Image) -> np.ndarray:
    """Returns the SHA-256 of an RGB image's pixels, then its perceptual hash: 64 bytes."""
    size = "{} {}\0".format(*image.size).encode()
    digest = hashlib.sha256(size + image.tobytes()).digest()
    return np.concatenate([np.frombuffer(digest, np.uint8), np.packbits(perceptual_signs(image) > 0)])


def perceptual_signs(image: Image.Image) -> np.ndarray:
    """Returns the perceptual hash of an image as 256 signs, 1 or -1, row by row of its frequencies."""
    small = image.convert("L").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    frequencies = dctn(np.asarray(small, dtype=np.float32))[:SIDE, :SIDE]
    return np.where(frequencies > 0, 1, -1).astype(np.int8).ravel()


def orientations(signs: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns names and hashes [N, 256] of images as they are (""), mirrored, and turned by multiples of 90 degrees.

    Mirroring an image changes the sign of its odd frequencies in that direction; exchanging its axes exchanges theirs.
    """
    sign = 1 - 2 * (np.arange(SIDE, dtype=np.int8) % 2)
    across, down = np.tile(sign, SIDE), np.repeat(sign, SIDE)
    exchanged = signs.reshape(-1, SIDE, SIDE).transpose(0, 2, 1).reshape(-1, BITS)
    as_is = [("", signs), ("mirrored", signs * across), ("mirrored", signs * down), ("turned", signs * across * down)]
    mirrored = [("mirrored and turned", exchanged), ("mirrored and turned", exchanged * across * down)]
    return [*as_is, *mirrored, ("turned", exchanged * across), ("turned", exchanged * down)]


def name_orientations(a: np.ndarray, b: np.ndarray) -> list[str]:
    """Returns the orientation of each hash of b [P, 256] that agrees most with that of a [P, 256], by name."""
    names = []
    for at in range(0, len(a), 4096):
        turns = orientations(b[at : at + 4096])
        agreement = [(a[at : at + 4096] == turned).sum(axis=1) for _, turned in turns]
        names += [turns[i][0] for i in np.argmax(agreement, axis=0)]
    return names


class HashSimilarities:
    """The fraction of equal bits of hashes x [N, 256] and y [M, 256] in the best of y's eight orientations.

    Used as `similarity.Cosines`. Of the four groups of frequencies, even or odd in each direction, mirroring changes
    the sign of some; so the products of the groups are added and subtracted instead of multiplying each orientation.
    """

    size = (256, 1024)  # six blocks of 1 MB, which stay in the cache of a core

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.shape = (len(x), len(y))
        self._x, self._y, self._turned = _parities(x), _parities(y), _parities(y, exchanged=True)
        self._buffers = np.empty((6, *self.size), np.float32)

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Returns a block [n, m], valid until the next call."""
        x = [group[rows] for group in self._x]
        as_is, turned = ([group[columns] for group in groups] for groups in (self._y, self._turned))
        *parts, best, other = self._buffers[:, : len(x[0]), : len(as_is[0])]
        np.maximum(self._best(x, as_is, parts, best), self._best(x, turned, parts, other), out=best)
        best *= 0.5 / BITS
        best += 0.5
        return best

    @staticmethod
    def _best(x: list, y: list, parts: list, out: np.ndarray) -> np.ndarray:
        """Returns the largest product over the four ways of mirroring: the larger of a + c + |b + d|, a - c + |b - d|.

        a, b, c, d: the products of the frequencies that are even in both directions, odd across, odd down, and odd in
        both.
        """
        a, b, c, d = (np.matmul(one, two.T, out=part) for one, two, part in zip(x, y, parts, strict=True))
        np.add(a, c, out=out)
        a -= c
        np.add(b, d, out=c)
        b -= d
        out += np.abs(c, out=c)
        a += np.abs(b, out=b)
        return np.maximum(out, a, out=out)


def _parities(signs: np.ndarray, exchanged: bool = False) -> list[np.ndarray]:
    """Returns the frequencies of hashes [N, 256] in four groups [N, 64], even or odd down and across."""
    grid = signs.reshape(-1, SIDE, SIDE)
    grid = grid.transpose(0, 2, 1) if exchanged else grid
    return [grid[:, i::2, j::2].reshape(len(grid), -1).astype(np.float32) for i in (0, 1) for j in (0, 1)]


def _read(path: str) -> tuple[tuple, np.ndarray] | str:
    """Returns a file's identity and fingerprint from a single read, or why it cannot be read."""
    try:
        content, identity = read_identified(path)
        return identity, fingerprint(open_image(path, content))
    except ImageError as error:
        return str(error)
