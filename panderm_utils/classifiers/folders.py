"""Predicts all images of a folder into a CSV file, which a killed call continues.

The file begins with two comment lines: what it is not, and what it is of. A batch of images is a few lines at its end,
and it has a temporary name until it is complete. What is there is continued only if it is of the same classifier and
folder, and each of its images has the size that it had.
"""

import csv
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from panderm_utils import data
from panderm_utils.classifiers.classifier import Classifier, ClassifierError, Predicted
from panderm_utils.disk import room_for

NOT_A_DEVICE = "Research only: this is not a medical device; do not use its output for diagnosis or treatment."
SYNTHETIC = " It was trained on drawn images: its output on real ones means nothing."
READING = ' Read this file with pandas.read_csv(file, comment="#").'
PARTIAL = ".partial"  # ending of the file until it is complete


@dataclass(frozen=True)
class Outcome:
    """What `predict_folder` did.

    Attributes:
        predicted, kept: Images predicted by this call, and by an earlier one.
        unlike: How many of those predicted by this call are unlike the training images.
        unreadable: One message per image that cannot be read.
    """

    predicted: int
    kept: int
    unlike: int
    unreadable: list[str]


def notice(classifier: Classifier) -> str:
    """Returns what everyone who sees a prediction must know."""
    return NOT_A_DEVICE + SYNTHETIC * classifier.facts["synthetic"]


def predict_folder(classifier: Classifier, folder: str | Path, file: str | Path) -> Outcome:
    """Predicts all images below a folder, those that `file` does not have yet, and writes them to it.

    Raises:
        ClassifierError: `file` is of something else; it is left as it is. DataError: the folder has no image.
        DiskFullError: What is written is kept.
    """
    listed, file = data.list_images(folder), Path(file).absolute()
    root, names = listed.root, listed.names
    if broken := [name for name in names if "\n" in name or "\r" in name]:
        raise ClassifierError(f"{root}: {broken[0]!r} has a line break in its name; rename it")
    partial = file.with_name(file.name + PARTIAL)
    about = {"run": classifier.run_id, "images": str(root), "tta": classifier.tta, "classifier": classifier.digest}
    done = _continue(partial, file, about, root, set(names))
    rows = [i for i, name in enumerate(names) if name not in done]
    paths = listed.paths
    predicted = unlike = 0
    unreadable = [f"{name}: {reason}" for name, reason in listed.unreadable.items()]
    bar = tqdm(desc=classifier.run_id, total=len(names), initial=len(done), unit="image", delay=1)
    with room_for("the predictions", 200 * len(names), file.parent), bar, partial.open("ab") as output:
        for part in classifier.stream(paths, rows, bar=bar):
            text = _lines(part, root, header=not output.tell())
            if not output.tell():
                text = f"# {notice(classifier)}{READING}\n# {json.dumps(about)}\n{text}"
            output.write(text.encode(errors="surrogateescape"))
            output.flush()
            predicted, unlike = predicted + len(part.images), unlike + int((part.distance > 1).sum())
            unreadable += part.unreadable
    partial.replace(file)
    return Outcome(predicted, len(done), unlike, unreadable)


def _lines(part: Predicted, root: Path, header: bool) -> str:
    """Returns the rows of a batch; text is quoted, so that a # in a name begins no comment."""
    names = [os.path.relpath(image, root) for image in part.images]
    table = part.table().assign(image=[Path(name).as_posix() for name in names])
    table["bytes"] = [os.stat(image).st_size for image in part.images]  # noqa: PTH116  (speed)
    return table.to_csv(index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")


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
        done.add(name)
    if there == file:
        shutil.copyfile(file, partial)
    with partial.open("r+b") as output:
        output.truncate(len(whole.encode(errors="surrogateescape")))
    return done
