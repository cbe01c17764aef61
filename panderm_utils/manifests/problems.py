"""Finds problems of a manifest beyond keys and types; a value that is None was reported when the file was read."""

import dataclasses
import re
from pathlib import Path, PurePath

from panderm_utils.manifests.entries import (
    METADATA_KINDS,
    POPULATION,
    SPLITS,
    DatasetManifest,
    Draw,
    EncoderManifest,
    Masks,
)
from panderm_utils.manifests.published import PaperItem
from panderm_utils.manifests.references import reference_problems
from panderm_utils.manifests.releases import Release

WITHOUT_CLASSES = "segmentation"  # the task of a dataset with masks alone
HEADLINE = {"binary": "auroc", "multiclass": "weighted_f1", WITHOUT_CLASSES: "jaccard"}  # the paper's rule
NAME_RULE = "lower-case letters, digits and _, at most 60"
# Windows device names
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
ACCESS = ("public", "mixed", "private")
FETCH = ("automatic", "instead", "by hand", "")
LAYOUTS = ("encoder_prefix", "plain", "module_prefix", "timm", "none")


def dataset_problems(m: DatasetManifest, path: Path) -> list[str]:
    """Returns `key: problem; remedy` for each problem of a dataset's manifest in, or to be written to, `path`."""
    problems = _name_problems(m.name, path)
    if m.task is not None and m.task not in HEADLINE:
        *others, last = HEADLINE
        problems.append(f"task: {m.task!r} is unknown; write {', '.join(others)} or {last}")
    elif None not in (m.task, m.headline_metric) and m.headline_metric != HEADLINE[m.task]:
        problems.append(f"headline_metric: {m.headline_metric!r} is not for {m.task}; write {HEADLINE[m.task]}")
    if m.task == WITHOUT_CLASSES:
        extra = [key for key in ("classes", "label_column", "class_counts", "melanoma") if getattr(m, key)]
        problems += [f"{key}: a {m.task} has no classes; remove it, or write another task" for key in extra]
        problems += ["masks: missing; write masks: {root, suffix}"] if m.masks is None and not extra else []
    else:
        if m.label_column not in (None, "label", "binary_label"):
            problems.append(f"label_column: {m.label_column!r} is unknown; write label or binary_label")
        elif m.task == "multiclass" and m.label_column == "binary_label":
            problems.append("label_column: binary_label is for two classes; write label")
        if m.classes is not None:
            problems += _class_problems(m)
    problems += _table_problems(m)
    if m.release is not None:
        problems += _release_problems(m, m.release)
    problems += _size_problems(m)
    if m.external and not m.melanoma:
        problems.append("external: a test-only dataset needs `melanoma`; name those classes, or remove `external`")
    invalid = [kind for kind in m.metadata or () if kind not in METADATA_KINDS]
    problems += [f"metadata.{kind}: no such kind; write one of {', '.join(METADATA_KINDS)}" for kind in invalid]
    unknown = [kind for kind in m.population or () if kind not in POPULATION]
    problems += [f"population.{kind}: no such kind; write one of {', '.join(POPULATION)}" for kind in unknown]
    problems += _access_problems(m) + reference_problems(m.references or ())
    keys = [field.name for field in dataclasses.fields(m)]
    for name in m.unverified or ():
        if name is not None and name not in keys:
            problems.append(f"unverified: {name!r} is not a key of a manifest; list keys of this file")
    return problems


def task_of(num_classes: int) -> tuple[str, str]:
    """Returns the task and the headline metric of a dataset with so many classes; without any, it has masks alone."""
    task = WITHOUT_CLASSES if not num_classes else "binary" if num_classes == 2 else "multiclass"
    return task, HEADLINE[task]


def encoder_problems(e: EncoderManifest) -> list[str]:
    """Returns `key: problem; remedy` for each problem of an encoder."""
    problems = _access_problems(e) + reference_problems(e.references or ())
    if e.name is not None and e.name != (proposal := valid_name(e.name)):
        problems.append(f"name: {e.name!r} becomes part of file names ({NAME_RULE}); write {proposal}")
    if e.architecture not in (None, "beit", "timm"):
        problems.append(f"architecture: {e.architecture!r} is unknown; write beit or timm")
    if e.architecture == "beit":
        problems += [f"{key}: missing; a beit needs it" for key in ("width", "depth", "heads") if not getattr(e, key)]
    if e.architecture == "timm" and e.timm_name == "":
        problems.append("timm_name: missing; write timm's model name")
    if e.layout is not None and e.layout not in LAYOUTS:
        problems.append(f"layout: {e.layout!r} is unknown; write one of {', '.join(LAYOUTS)}")
    if e.layout in ("encoder_prefix", "plain", "module_prefix") and e.weights_file == "":
        problems.append("weights_file: missing; write the name of the weights file")
    if e.color is not None and not re.fullmatch(r"#[0-9A-Fa-f]{6}", e.color):
        problems.append(f"color: {e.color!r} is not a colour; write one like '#D55E00', in quotes")
    if e.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", e.sha256):
        problems.append(f"sha256: {e.sha256!r} is not a SHA-256; write its 64 digits 0-9 and a-f")
    return problems


def valid_name(text: str) -> str:
    """Returns the text itself if it is a valid file name on every disk (NAME_RULE), else the nearest valid name."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower())
    name = (name if name == text else name.strip("_"))[:60] or "mine"
    return f"{name}_data" if name in RESERVED else name


def item_problems(item: PaperItem) -> list[str]:
    """Returns `key: problem; remedy` for each problem of a figure or table of the paper."""
    problems = []
    if item.access is not None and item.access not in ACCESS:
        problems.append(f"access: {item.access!r} is unknown; write one of {', '.join(ACCESS)}")
    if item.notebooks == () and item.note == "":
        problems.append("note: missing; without a notebook, say why there is none")
    if item.access == "private" and item.notebooks:
        problems.append("notebooks: none can show private data; remove it, or write access: mixed")
    return problems


def _name_problems(name: str | None, path: Path) -> list[str]:
    """The file is named after the dataset, so names are unique, even on disks that ignore case."""
    expected = valid_name(path.stem)
    if path.stem != expected:
        return [f"name: a file name may have {NAME_RULE}; rename this file to {expected}.yaml or another name"]
    if name in (None, expected):
        return []
    twin = path.with_name(f"{name}.yaml")
    whose = f"is the dataset of {twin.name}" if twin.is_file() else "is not the file's name"
    return [f"name: {name!r} {whose}; write name: {expected}"]


def _class_problems(m: DatasetManifest) -> list[str]:
    k, problems = len(m.classes), []
    if m.label_column == "":
        problems.append("label_column: missing; write label or binary_label")
    if k < 2 or (m.task == "binary" and k != 2) or (m.task == "multiclass" and k == 2):
        problems.append(f"classes: {k} do not match task: {m.task}; list every class in label order")
    names = [c.name for c in m.classes if c is not None and c.name is not None]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(f"classes: {name!r} is the name of {names.count(name)} classes; names must differ")
    melanoma = [name for name in m.melanoma or () if name is not None]
    problems += [
        f"melanoma: {name!r} is not a class; write names of classes, from {', '.join(names)}"
        for name in melanoma
        if name not in names
    ]
    if len(set(melanoma)) != len(melanoma) or (names and set(names) <= set(melanoma)):
        problems.append("melanoma: names a class twice, or every class; name each melanoma class once")
    for split, counts in (m.class_counts or {}).items():
        if counts is not None and len(counts) != k:
            problems.append(f"class_counts.{split}: {len(counts)} numbers for {k} classes; write one per class")
    return problems


def _table_problems(m: DatasetManifest) -> list[str]:
    """The places of the data, and what lists the images: a CSV, a folder for each split, or a CSV that is drawn."""
    problems = []
    masks, draw = m.masks or Masks(root=""), m.draw or Draw("", "", {}, 1)
    folders = [(f"split_folders.{split}", folder) for split, folder in (m.split_folders or {}).items()]
    folders += [(f"masks.folders.{split}", folder) for split, folder in (masks.folders or {}).items()]
    places = [
        ("csv", m.csv),
        ("image_root", m.image_root),
        ("masks.root", masks.root),
        ("draw.metadata", draw.metadata),
    ]
    for key, text in [*places, *folders]:
        place = PurePath(text or ".")
        if not m.own and (place.is_absolute() or ".." in place.parts):
            problems.append(f"{key}: {str(place)!r} is not below the data root; write it relative to there")
    if m.csv == "" and not m.split_folders:
        problems.append("csv: missing; write csv: text, or split_folders: {train, val, test}")
    if m.csv and m.split_folders:
        problems.append("split_folders: the CSV has the splits; remove csv or split_folders")
    if m.split_folders and m.classes:
        problems.append("split_folders: folders have no labels; write a CSV with them, or remove classes")
    if m.masks and m.split_folders and {*(masks.folders or {})} != {*m.split_folders}:
        problems.append("masks.folders: are not those of the splits; write one for each of split_folders")
    if m.masks and not m.split_folders and masks.folders:
        problems.append("masks.folders: are for split_folders; remove them, write masks.root")
    if m.masks and m.split_folders and masks.suffix == "":
        problems.append("masks.suffix: missing; without a CSV, a mask is named after its image: write _mask.png or so")
    if m.draw and None not in (draw.percent, draw.images) and None not in draw.percent.values():
        if {*draw.percent} != {*SPLITS} or sum(draw.percent.values()) != 100 or min(draw.percent.values()) < 1:
            problems.append("draw.percent: write whole numbers for train, val and test that sum to 100")
        if draw.images < 1:
            problems.append(f"draw.images: {draw.images}; write the number of images in the complete dataset")
    if m.draw and len(m.groups or {}) != 1:
        problems.append("groups: a draw keeps one kind of group in a split; write groups: {lesion: COLUMN}")
    return problems


def _release_problems(m: DatasetManifest, release: Release) -> list[str]:
    """What the table is made of: rows with a class and a split, or folders of classes."""
    problems, names = [], [c.name for c in m.classes or () if c is not None]
    if not m.csv or m.draw:
        problems.append("release: makes the table `csv`; remove it, or write csv, without a draw")
    if release.lacks:
        problems += (
            ["release.lacks: then it makes no table; remove table and labels"]
            if release.table or release.labels
            else []
        )
    elif release.table == "":
        problems += [] if release.labels else ["release.labels: missing; without a table, write {FOLDER: CLASS}"]
        problems += [] if m.external else ["release.table: missing; folders of classes have no splits"]
    else:
        problems += [
            f"release.{k}: missing; write a column of the table" for k in ("image", "label") if not getattr(release, k)
        ]
        if not m.external and bool(release.split) == bool(release.indexes):
            problems.append(
                "release.split: write a column of splits, or indexes: {train, val, test}, a file of rows each"
            )
    for name in dict.fromkeys((release.labels or {}).values()):
        if name is not None and name not in names:
            problems.append(f"release.labels: {name!r} is not a class; write one of {', '.join(map(str, names))}")
    if release.counts and len(release.counts) != len(names):
        problems.append(f"release.counts: {len(release.counts)} numbers for {len(names)} classes; write one per class")
    return problems


def _access_problems(m: DatasetManifest | EncoderManifest) -> list[str]:
    problems = []
    for i, access in enumerate(m.access or ()):
        if access is None:
            continue
        if access.fetch not in (None, *FETCH):
            valid = "automatic, instead or by hand, or remove it"
            problems.append(f"access[{i}].fetch: {access.fetch!r} is unknown; write {valid}")
        if access.fetch in ("automatic", "instead") and not (access.url or "").startswith("https://"):
            problems.append(
                f"access[{i}].url: {access.url!r} cannot be downloaded; write one that begins with https://"
            )
        for name, place in (access.files or {}).items():
            if place is not None and (PurePath(place).is_absolute() or ".." in PurePath(place).parts):
                problems.append(
                    f"access[{i}].files.{name}: {place!r} is not below the root; write it relative to there"
                )
    return problems


def _size_problems(m: DatasetManifest) -> list[str]:
    sizes, class_counts, problems = m.split_sizes or {}, m.class_counts or {}, []
    if m.images is not None and (m.images < 1 or sizes or m.draw):
        problems.append(
            f"images: {m.images}; write the number of all images, or remove it if split_sizes or draw say it"
        )
    named = {"split_folders": m.split_folders or {}, "draw.percent": (m.draw and m.draw.percent) or {}}
    for key, splits in ({"split_sizes": sizes, "class_counts": class_counts} | named).items():
        invalid = [split for split in splits if split not in SPLITS]
        problems += [f"{key}.{split}: no such split; write {', '.join(SPLITS)}" for split in invalid]
    if m.external and {*sizes, *class_counts} - {"test"}:
        problems.append("external: all its images are test images; write split_sizes and class_counts of test only")
    for split, size in sizes.items():
        if size is not None and size < (0 if split == "val" else 1):
            problems.append(f"split_sizes.{split}: {size}; write the number of images, or remove the split if unknown")
    for split, counts in class_counts.items():
        if counts is None or None in counts:
            continue
        if min(counts, default=0) < 0:
            problems.append(f"class_counts.{split}: {min(counts)} is negative; write numbers of images")
        size = sizes.get(split)
        if size is not None and sum(counts) != size:
            problems.append(f"class_counts.{split}: sums to {sum(counts)}, split_sizes.{split} is {size}; correct one")
    return problems
