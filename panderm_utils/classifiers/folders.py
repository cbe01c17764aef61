"""Predicts all images of a folder into a CSV file, which a killed call continues; masks go into a folder, with the CSV.

    classes   FILE.csv
    masks     DIR/predictions.csv, and DIR/<image>_segmentation.png for each image, in the images' subfolders

The CSV begins with two comment lines: what it is not, and what it is of. A batch of images is a few lines at its end,
and it has a temporary name until it is complete. What is there is continued only if it is of the same classifier and
folder, and each of its images has the size that it had. A mask is written before its line: one that a kill cut short
has no line, and is written again.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from panderm_utils import data, protocols, results
from panderm_utils.classifiers.classifier import Classifier, Predicted, load_classifier
from panderm_utils.classifiers.segmenter import Segmented, Segmenter, load_segmenter
from panderm_utils.classifiers.views import ClassifierError
from panderm_utils.disk import room_for
from panderm_utils.manifests import NOT_A_DEVICE

SYNTHETIC = " It was trained on drawn images: its output on real ones means nothing."
READING = ' Read this file with pandas.read_csv(file, comment="#").'
PARTIAL = ".partial"  # ending of the file until it is complete
TABLE = "predictions.csv"  # in a folder of masks


@dataclass(frozen=True)
class Outcome:
    """What `predict_folder` did.

    Attributes:
        predicted, kept: Images predicted by this call, and by an earlier one.
        flagged: How many of those predicted by this call are what the model's `flag` says.
        unreadable: One message per image that cannot be read.
    """

    predicted: int
    kept: int
    flagged: int
    unreadable: list[str]


def load_model(
    record: str | Path, weights_root: str | Path | None = None, device: str = "auto", tta: int = 0
) -> Classifier | Segmenter:
    """Returns the model of a run, with which its protocol predicts: a classifier or a segmenter.

    Args:
        record, weights_root, device, tta: As in `load_classifier`; it and `load_segmenter` list the errors.
    """
    if protocols.load_protocol(results.read_record(record)["protocol"]).load_segmenter is None:
        return load_classifier(record, weights_root, device, tta)
    if tta:
        raise ClassifierError(f"--tta {tta}: random views are for fine-tuned classifiers; for masks, leave --tta out")
    return load_segmenter(record, device)


def notice(model: Classifier | Segmenter) -> str:
    """Returns what everyone who sees a prediction must know."""
    return NOT_A_DEVICE + SYNTHETIC * model.synthetic


def predict_folder(model: Classifier | Segmenter, folder: str | Path, to: str | Path) -> Outcome:
    """Predicts all images below a folder, those that the CSV does not have yet, and writes them to it.

    Args:
        to: The CSV; with a segmenter, the folder of the masks and the CSV.

    Raises:
        ClassifierError: What is in `to` is of something else; it is left as it is. DataError: the folder has no image.
        DiskFullError: What is written is kept.
    """
    listed, to = data.list_images(folder), Path(to).absolute()
    file = to / TABLE if isinstance(model, Segmenter) else to
    root, names = listed.root, listed.names
    if broken := [name for name in names if "\n" in name or "\r" in name]:
        raise ClassifierError(f"{root}: {broken[0]!r} has a line break in its name; rename it")
    partial = file.with_name(file.name + PARTIAL)
    if isinstance(model, Segmenter):
        _check_masks(to, root, names, ours=partial.exists() or file.exists())
    elif to.is_dir():
        raise ClassifierError(f"{to}: is a folder; classes go into a file: write --to FILE.csv")
    about = {"run": model.run_id, "images": str(root), "tta": model.tta, "classifier": model.digest}
    done = _continue(partial, file, about, root, set(names))
    rows = [i for i, name in enumerate(names) if name not in done]
    paths = listed.paths
    predicted = flagged = 0
    unreadable = [f"{name}: {reason}" for name, reason in listed.unreadable.items()]
    bar = tqdm(desc=model.run_id, total=len(names), initial=len(done), unit="image", delay=1)
    with room_for("the predictions", 200 * len(names), file.parent), bar, partial.open("ab") as output:
        for part in model.stream(paths, rows, bar=bar):
            text, number = _lines(part, root, file.parent, header=not output.tell())
            if not output.tell():
                text = f"# {notice(model)}{READING}\n# {json.dumps(about)}\n{text}"
            output.write(text.encode(errors="surrogateescape"))
            output.flush()
            predicted, flagged = predicted + len(part.images), flagged + number
            unreadable += part.unreadable
    partial.replace(file)
    return Outcome(predicted, len(done), flagged, unreadable)


def _check_masks(to: Path, root: Path, names: Sequence[str], ours: bool) -> None:
    """Raises a ClassifierError if a mask would replace a file or another mask, or lie among the images.

    Args:
        ours: Whether an earlier call has begun to write to the folder.
    """
    if to.suffix.lower() == ".csv" or to.is_file():
        raise ClassifierError(f"{to}: masks need a folder; write --to DIR, which will have them and {TABLE}")
    if to.resolve().is_relative_to(root.resolve()):
        raise ClassifierError(
            f"{to}: is in the folder of the images, where masks would be taken for images; choose another --to DIR"
        )
    masks: dict[str, str] = {}
    for name in names:
        mask = data.mask_name(name)
        if (other := masks.setdefault(mask.casefold(), name)) != name:
            raise ClassifierError(f"{root}: {other} and {name} would have one mask, {mask}; rename one image")
        if not ours and (to / mask).exists():
            raise ClassifierError(f"{to / mask}: exists and is of no earlier call; choose another --to")


def _lines(part: Predicted | Segmented, root: Path, folder: Path, header: bool) -> tuple[str, int]:
    """Returns the rows of a batch, and the flagged images in it; text is quoted: a # in a name begins no comment."""
    table, number = part.save([Path(os.path.relpath(image, root)).as_posix() for image in part.images], folder)
    table["bytes"] = [os.stat(image).st_size for image in part.images]  # noqa: PTH116  (speed)
    return table.to_csv(index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"), number


def _continue(partial: Path, file: Path, about: dict, root: Path, names: set[str]) -> set[str]:
    """Returns the images that are in the file already, after a copy of a complete file to the partial one."""
    there = partial if partial.exists() else file
    if not there.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return set()
    content = there.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].decode(errors="surrogateescape")  # a kill may have cut the last line
    lines = whole.split("\n")
    remedy = f"delete {there}, or choose another --to"
    if there == partial and len(lines) < 4:  # not even its header
        partial.unlink()
        return set()
    try:
        found = dict(json.loads(lines[1].removeprefix("#")))
    except (IndexError, TypeError, ValueError) as error:
        raise ClassifierError(f"{there}: exists and holds no predictions; choose another --to") from error
    for key, value in about.items():
        if found.get(key) != value:
            raise ClassifierError(f"{there}: is of {key} {found.get(key)!r}, not {value!r}; {remedy}")
    done = set()
    for row in csv.DictReader(io.StringIO("\n".join(lines[2:]))):
        name = row["image"]
        if name not in names or (root / name).stat().st_size != int(row["bytes"]):
            raise ClassifierError(f"{there}: has a prediction of {name}, which was changed or removed since; {remedy}")
        if "mask" in row and not (file.parent / row["mask"]).is_file():
            raise ClassifierError(f"{there}: the mask of {name} is gone, {row['mask']}; restore it, or {remedy}")
        done.add(name)
    if there == file:
        shutil.copyfile(file, partial)
    with partial.open("r+b") as output:
        output.truncate(len(whole.encode(errors="surrogateescape")))
    return done
