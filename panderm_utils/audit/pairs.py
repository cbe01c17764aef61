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

from panderm_utils.audit.fingerprints import fingerprint_files, name_orientations
from panderm_utils.audit.kinds import (
    COPIES,
    COPY,
    COPY_SIMILARITY,
    FEATURES,
    FILE,
    GROUPS,
    ISIC,
    KINDS,
    PIXELS,
    thresholds,
)
from panderm_utils.audit.searching import compared, pair_table, search_pairs
from panderm_utils.audit.similarity import MOST, unit
from panderm_utils.data import Dataset, is_missing, isic_id
from panderm_utils.encoders import current_features
from panderm_utils.manifests import SPLITS, DatasetManifest

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
    files, pixels, signs, notes = _fingerprints(images, studies, cache)
    ids = images["path"].map(isic_id).where(lambda ids: ids != "")
    found = [_sharing(files, images, FILE), _sharing(pixels, images, PIXELS)]
    found.append(_sharing(pd.factorize(ids)[0], images, ISIC))
    found += [_sharing_group(codes, images, f"same {kind}") for kind, codes in groups.items()]
    copies, nearest, all_copies = search_pairs(images, signs, COPY, copy_similarity)
    copies["orientation"] = name_orientations(signs[copies["a"]], signs[copies["b"]])
    found.append(copies)
    tables, incomplete = [nearest], [] if all_copies else [COPY]
    if encoder is not None:
        x, rows, missing = _features(studies, cache, encoder)
        notes += missing
        threshold = thresholds(encoder, copy_similarity, feature_similarity).get(FEATURES, np.inf)
        if threshold == np.inf and len(rows):
            notes.append(f"{encoder} is a toy: its features do not tell copies from look-alikes, so they list no pair")
        similar, near, all_similar = search_pairs(images.iloc[rows], x, FEATURES, threshold)
        incomplete += [] if all_similar else [FEATURES]
        for part in (similar, near):
            part[["a", "b"]] = rows[part[["a", "b"]].to_numpy(dtype=np.int64)]
        found.append(similar)
        tables.append(near)
    notes += [f"{kind}: only the {MOST:,} most similar pairs; raise its threshold" for kind in incomplete]
    notes += _same_files(images)
    pairs, nearest = _strongest(found), pd.concat(tables)
    return Audit(images, _named(pairs, images, PAIR_COLUMNS), _named(nearest, images, NEAREST_COLUMNS), tuple(notes))


def _strongest(found: list[pd.DataFrame]) -> pd.DataFrame:
    """Returns all pairs, the most similar first; copies of one kind are no longer listed under weaker ones."""
    pairs = pd.concat(found, ignore_index=True)
    order = pairs["kind"].map(KINDS.index)
    pairs = pairs.assign(order=order, copy=order < len(COPIES)).sort_values("order", kind="stable")
    pairs = pairs[~(pairs["copy"] & pairs.duplicated(["a", "b", "copy"]))]
    return pairs.sort_values(["similarity", "order", "a", "b"], ascending=[False, True, True, True])


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
            groups.append(_group_ids(card, table))
    ids = pd.concat(groups, ignore_index=True)
    return pd.concat(parts, ignore_index=True), {kind: pd.factorize(ids[kind])[0] for kind in ids}


def _group_ids(card: DatasetManifest, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the lesion, case and patient of each image, as far as there are columns; missing where it has none."""
    ids = pd.DataFrame(index=table.index)
    for kind in GROUPS:
        if card.groups.get(kind) in table:
            texts = table[card.groups[kind]].astype(str)
            ids[kind] = (card.name + "\0" + texts).mask(is_missing(texts))
    return ids


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
    return compared(images, _with_kind(pairs, kind, 1.0 if kind in (FILE, PIXELS) else np.nan))


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
    return pair_table(kind, np.full(len(a), similarity), a, b)


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
        labelled = [
            study.manifest.name for study in studies if study.manifest.classes and study.manifest.name in without
        ]
        command = f"; run_all.py --features {encoder} --datasets {' '.join(labelled)} --to features.npz computes them"
        notes.append(f"features of {encoder} are not in the cache: {names}{command if labelled else ''}")
    kept = [(rows, unit(x)) for (_, _, rows), x in zip(places, found, strict=True) if x is not None and len(x)]
    if not kept:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int64), notes
    return np.concatenate([x for _, x in kept]), np.concatenate([rows for rows, _ in kept]), notes


def _same_files(images: pd.DataFrame) -> list[str]:
    """Returns which datasets list the same files: one image, not a copy."""
    paths = {name: set(rows["path"]) for name, rows in images.groupby("dataset", sort=False)}
    shared = {(a, b): len(paths[a] & paths[b]) for a, b in combinations(paths, 2)}
    return [f"{a} and {b} list {n:,} of the same files, which are not counted" for (a, b), n in shared.items() if n]


def _named(pairs: pd.DataFrame, images: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Returns pairs with the facts of both images in place of their rows."""
    for side in "ab":
        facts = images.iloc[pairs[side].to_numpy(dtype=np.int64)].reset_index(drop=True)
        pairs = pairs.reset_index(drop=True).join(facts.drop(columns="path").add_suffix(f"_{side}"))
    return pairs[columns]
