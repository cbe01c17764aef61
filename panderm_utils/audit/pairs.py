"""Finds the pairs of images that two splits, or two datasets, share: copies, near copies, same lesion, same patient.

Compared are the test images of each dataset with its own train and val images, and all images of each dataset with
those of each other. A file that two datasets list is one image, not a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.audit.fingerprints import HashSimilarities, fingerprint_files, name_orientations
from panderm_utils.audit.similarity import Cosines, similar_pairs, unit
from panderm_utils.data import Dataset, is_missing, isic_id
from panderm_utils.encoders import current_features
from panderm_utils.manifests import SPLITS, load_encoder_manifest

FILE, PIXELS, ISIC, COPY, FEATURES = "same file", "same pixels", "same ISIC id", "near copy", "similar features"
COPIES = (
    FILE,
    PIXELS,
    ISIC,
    COPY,
    FEATURES,
)  # the strongest evidence first: a pair is listed under the first that it has
GROUPS = ("lesion", "case", "patient")  # kinds of groups in manifests; a case is one lesion in several pictures
KINDS = (*COPIES, *(f"same {kind}" for kind in GROUPS))
# Of the bits of the perceptual hash: 224 of 256. Of 2,203 drawn images, no two agree in more than 0.84, however turned;
# copies as JPEG of quality 30, at half the size or in another aspect ratio agree in 0.92 or more, without a margin of
# 1% in 0.875 or more, of 2% in 0.8 or more. Among many more images, a few look-alikes are to be expected.
COPY_SIMILARITY = 0.875
# Cosine of features: a first value, not measured on real images. Set it where the histogram of the notebook has a gap.
FEATURE_SIMILARITY = 0.98
PARTNERS = 3  # train and val images listed for each test image of a lesion or patient, who may have hundreds
SIDES = [f"{name}_{side}" for side in "ab" for name in ("dataset", "image", "split", "label")]
PAIR_COLUMNS = ["kind", "similarity", "orientation", *SIDES]
NEAREST_COLUMNS = ["kind", "similarity", *SIDES]


@dataclass(frozen=True, eq=False)
class Audit:
    """What is shared.

    Attributes:
        images: One row per image: dataset, image, split, label (the class, "" without classes), path.
        pairs: One row per pair: kind (one of KINDS), similarity (1 for the same file or pixels; fraction of equal bits
            of a near copy; cosine of features; else NaN), orientation of b ("" as a, "mirrored", "turned"), then
            dataset, image, split and label of both images. Within a dataset, a is the test image. Of a lesion, case or
            patient, each test image is listed with at most PARTNERS others.
        nearest: One row per test image and kind of similarity (near copy, similar features): the nearest train or val
            image of its dataset.
        notes: What was not compared, and why.
    """

    images: pd.DataFrame = field(repr=False)
    pairs: pd.DataFrame = field(repr=False)
    nearest: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()

    def leaking(self, dataset: str, kinds: Sequence[str] = KINDS, source: str | None = None) -> set[str]:
        """Returns the images of a dataset that share something with a source; of its own, with train and val images.

        Args:
            kinds: What counts.
            source: The dataset that a model was trained on; None: this one, so that its test images may leak.
        """
        source, pairs = source or dataset, self.pairs[self.pairs["kind"].isin(list(kinds))]
        a, b = pairs["dataset_a"], pairs["dataset_b"]
        there = pairs.loc[(a == dataset) & (b == source), "image_a"]
        back = pairs.loc[(a == source) & (b == dataset), "image_b"] if source != dataset else ()
        return {*there, *back}


def audit_datasets(
    studies: Sequence[Dataset],
    cache: str | Path | None = None,
    encoder: str | None = None,
    copy_similarity: float = COPY_SIMILARITY,
    feature_similarity: float | None = None,
) -> Audit:
    """Returns what datasets share, within each and between them.

    Args:
        cache: The workspace's cache, of fingerprints and features.
        encoder: Whose features are compared, where the cache has them; none are computed. None: no features.
        copy_similarity: The fraction of equal bits from which on two perceptual hashes are a near copy.
        feature_similarity: The cosine from which on two images have similar features. None: FEATURE_SIMILARITY; of a
            toy, whose features do not tell copies from others, no pair is listed.
    """
    if not studies:
        empty = pd.DataFrame(columns=["dataset", "image", "split", "label", "path"])
        return Audit(empty, pd.DataFrame(columns=PAIR_COLUMNS), pd.DataFrame(columns=NEAREST_COLUMNS))
    images, groups = _list_images(studies)
    owners = images["dataset"].to_numpy()
    files, pixels, signs, notes = _fingerprints(images, studies, cache)
    ids = images["path"].map(isic_id).where(lambda ids: ids != "")
    found = [_sharing(files, images, FILE), _sharing(pixels, images, PIXELS)]
    found.append(_sharing(pd.factorize(ids)[0], images, ISIC))
    found += [_sharing_group(codes, images, f"same {kind}") for kind, codes in groups.items()]
    copies, nearest = search_pairs(images, signs, COPY, copy_similarity)
    copies["orientation"] = name_orientations(signs[copies["a"]], signs[copies["b"]])
    found.append(copies)
    tables = [nearest]
    if encoder is not None:
        x, rows, missing = _features(studies, cache, encoder)
        notes += missing
        threshold = thresholds(encoder, copy_similarity, feature_similarity).get(FEATURES, np.inf)
        if threshold == np.inf and len(rows):
            notes.append(f"{encoder} is a toy: its features do not tell copies from look-alikes, so they list no pair")
        similar, near = search_pairs(images.iloc[rows], x, FEATURES, threshold)
        for part in (similar, near):
            part[["a", "b"]] = rows[part[["a", "b"]].to_numpy(dtype=np.int64)]
        found.append(similar)
        tables.append(near)
    pairs = pd.concat(found, ignore_index=True)
    order = pairs["kind"].map(KINDS.index)
    pairs = pairs.assign(order=order, copy=order < len(COPIES)).sort_values("order", kind="stable")
    pairs = pairs[~(pairs["copy"] & pairs.duplicated(["a", "b", "copy"]))]
    pairs = pairs.sort_values(["similarity", "order", "a", "b"], ascending=[False, True, True, True])
    notes += _same_files(images, owners)
    return Audit(
        images, _named(pairs, images, PAIR_COLUMNS), _named(pd.concat(tables), images, NEAREST_COLUMNS), tuple(notes)
    )


def thresholds(
    encoder: str | None, copy_similarity: float = COPY_SIMILARITY, feature_similarity: float | None = None
) -> dict[str, float]:
    """Returns kind -> the similarity from which on `audit_datasets` lists a pair; kinds without one list none."""
    found = {COPY: copy_similarity}
    if encoder is not None and (feature_similarity or not load_encoder_manifest(encoder).toy):
        found[FEATURES] = feature_similarity or FEATURE_SIMILARITY
    return found


def _list_images(studies: Sequence[Dataset]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Returns all images, split by split as features are cached, and kind of group -> code of each image, -1: none."""
    parts, groups = [], []
    for study in studies:
        card = study.manifest
        for split in SPLITS:
            table = study.split(split)
            part = pd.DataFrame({"dataset": card.name, "image": table["image"], "split": split})
            part["label"] = [card.class_names[k] for k in table["label"]] if card.classes else ""
            part["path"] = [str(study.path(image)) for image in table["image"]]
            parts.append(part)
            named = {kind: table[card.groups[kind]] for kind in GROUPS if card.groups.get(kind) in table}
            groups.append(
                pd.DataFrame(
                    {
                        kind: card.name + "\0" + ids.astype(str).mask(is_missing(ids.astype(str)))
                        for kind, ids in named.items()
                    },
                    index=table.index,
                )
            )
    ids = pd.concat(groups, ignore_index=True)
    codes = {kind: pd.factorize(ids[kind])[0] for kind in ids}
    return pd.concat(parts, ignore_index=True), codes


def _fingerprints(images: pd.DataFrame, studies, cache) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Returns codes of equal files [N] and of equal pixels [N] (-1: unreadable), hashes [N, 256], and notes."""
    parts, notes = [], []
    for study in studies:
        rows = images[images["dataset"] == study.manifest.name]
        names = [study.files[image] for image in rows["image"]]
        parts.append(fingerprint_files(rows["path"].tolist(), names, cache, f"fingerprints of {study.manifest.name}"))
        notes += [f"{study.manifest.name}: left out: {reason}" for reason in parts[-1].unreadable.values()]
    files, pixels, signs = (np.concatenate([getattr(p, name) for p in parts]) for name in ("files", "pixels", "signs"))
    readable = (signs != 0).any(axis=1)
    codes = [np.where(readable, _codes(digests), -1) for digests in (files, pixels)]
    return *codes, signs, notes


def _codes(digests: np.ndarray) -> np.ndarray:
    """Returns a number for each digest [N, 32], the same for equal ones."""
    return np.unique(np.ascontiguousarray(digests).view("V32").ravel(), return_inverse=True)[1]


def _sharing(codes: np.ndarray, images: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Returns the pairs of images with the same code, -1 excepted."""
    pairs = [part[np.stack(np.triu_indices(len(part), 1))] for part in _groups(codes)]
    return _compared(images, _with_kind(pairs, kind, 1.0 if kind in (FILE, PIXELS) else np.nan))


def _sharing_group(codes: np.ndarray, images: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Returns the pairs of a test image and the first other images of its lesion or patient, by code."""
    test, pairs = (images["split"] == "test").to_numpy(), []
    for part in _groups(codes):
        ours, theirs = part[test[part]], part[~test[part]][:PARTNERS]
        pairs.append(np.stack([np.repeat(ours, len(theirs)), np.tile(theirs, len(ours))]))
    return _with_kind(pairs, kind, np.nan)


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of each code that several rows have, -1 excepted."""
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _with_kind(pairs: list[np.ndarray], kind: str, similarity: float) -> pd.DataFrame:
    a, b = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
    return _table(kind, np.full(len(a), similarity), a, b)


def _compared(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns the pairs of two datasets, or of a test image (as a) and another split of one dataset."""
    a, b = pairs["a"].to_numpy(dtype=np.int64), pairs["b"].to_numpy(dtype=np.int64)
    dataset, test = images["dataset"].to_numpy(), (images["split"] == "test").to_numpy()
    path = images["path"].to_numpy()
    within = dataset[a] == dataset[b]
    keep = np.where(within, test[a] != test[b], path[a] != path[b])
    swap = within & test[b]
    pairs = pairs.assign(a=np.where(swap, b, a), b=np.where(swap, a, b))
    return pairs[keep]


def search_pairs(images: pd.DataFrame, x: np.ndarray, kind: str, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the pairs of images whose similarity reaches a threshold, and the nearest of each test image.

    Both are tables of kind, similarity, orientation (""), a and b (rows of `images`).

    Args:
        images: Columns dataset, split and path.
        x: One row per image: hashes for near copies, or features of length 1.
    """
    names, test = images["dataset"].to_numpy(), (images["split"] == "test").to_numpy()
    rows = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    tasks = [(part[test[part]], part[~test[part]], True) for part in rows.values()]
    tasks += [(rows[one], rows[other], False) for one, other in combinations(rows, 2)]
    compare = HashSimilarities if kind == COPY else Cosines
    found, nearest = [_table(kind, [], [], [])], [_table(kind, [], [], [])]
    total = sum(len(a) * len(b) for a, b, _ in tasks)
    with tqdm(total=total, desc=kind, unit="pair", unit_scale=True, delay=1) as bar:
        for a, b, within in tasks:
            part = similar_pairs(compare(x[a], x[b]), threshold)
            found.append(_table(kind, part.similarity, a[part.a], b[part.b]))
            if within and len(b):
                nearest.append(_table(kind, part.best, a, b[part.nearest]))
            bar.update(len(a) * len(b))
    return _compared(images, pd.concat(found, ignore_index=True)), pd.concat(nearest, ignore_index=True)


def _table(kind: str, similarity, a, b) -> pd.DataFrame:
    columns = {"kind": kind, "similarity": np.asarray(similarity, np.float64), "orientation": ""}
    return pd.DataFrame({**columns, "a": np.asarray(a, np.int64), "b": np.asarray(b, np.int64)})


def _features(studies: Sequence[Dataset], cache, encoder: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the cached features of unit length [n, D], the rows of all images that they are of, and notes."""
    lists, at, places = [], 0, []
    for study in studies:
        for split in SPLITS:
            names = [study.files[image] for image in study.split(split)["image"]]
            lists.append((names, [str(study.image_root / name) for name in names]))
            places.append((study.manifest.name, split, np.arange(at, at + len(names))))
            at += len(names)
    found = current_features(cache, encoder, lists) if cache else [None] * len(lists)
    without: dict[str, list[str]] = {}
    for (name, split, rows), x in zip(places, found, strict=True):
        if x is None and len(rows):
            without.setdefault(name, []).append(split)
    notes = []
    if without:
        names = ", ".join(f"{name} ({' '.join(splits)})" for name, splits in without.items())
        command = f"run_all.py --features {encoder} --datasets {' '.join(without)} --to features.npz"
        notes.append(f"features of {encoder} are not in the cache: {names}; computed by {command}")
    kept = [(rows, unit(x)) for (_, _, rows), x in zip(places, found, strict=True) if x is not None and len(x)]
    if not kept:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int64), notes
    return np.concatenate([x for _, x in kept]), np.concatenate([rows for rows, _ in kept]), notes


def _same_files(images: pd.DataFrame, owners: np.ndarray) -> list[str]:
    """Returns which datasets list the same files: one image, not a copy."""
    paths = {name: set(images.loc[owners == name, "path"]) for name in dict.fromkeys(owners)}
    shared = {(a, b): len(paths[a] & paths[b]) for a, b in combinations(paths, 2)}
    return [f"{a} and {b} list {n:,} of the same files, which are not counted" for (a, b), n in shared.items() if n]


def _named(pairs: pd.DataFrame, images: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Returns pairs with the facts of both images in place of their rows."""
    for side in "ab":
        facts = images.iloc[pairs[side].to_numpy(dtype=np.int64)].reset_index(drop=True)
        pairs = pairs.reset_index(drop=True).join(facts.drop(columns="path").add_suffix(f"_{side}"))
    return pairs[columns]
