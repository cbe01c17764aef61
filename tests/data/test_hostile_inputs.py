"""Inputs that lie, inputs that bite: refused with the file, the row and the remedy, or taken as said; all else stays.

One table. A row: what is planted in a small world of datasets, weights, manifests and notebooks; what reads it; and
what must come of it, the words of the refusal (a regular expression) or a look at what was taken. Around each reading
every file of the world is hashed, and another dataset, other weights and another manifest must answer as ever.
"""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import run_all
from panderm_utils import workspace
from panderm_utils.batch import PlanError, jobs, plan
from panderm_utils.batch import running as batch
from panderm_utils.data import dataset as data
from panderm_utils.encoders import loading as encoders
from panderm_utils.encoders.checkpoints import EncoderError
from panderm_utils.encoders.features import extract_features
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols.fine_tune.model import FineTuneModel, load_finetuned
from tests.batch.test_batch import PARAMETERS, write_notebook
from tests.data.test_data import GOOD, card, lay_out
from tests.small_record import write_small_record

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
TOY, OTHER = card(), card(name="other", csv="other/toy.csv", image_root="other/images")
SIZES = {"width": 48, "depth": 2, "heads": 3, "num_features": 48}
TINY = replace(manifests.load_encoder_manifest("panderm_base"), sha256=None, **SIZES)
LONG, BELL = "a" * 300, "\x1b[2J\x07"
CODE = """cpu"\n__import__("pathlib").Path("MARK").touch() #"""


class World:
    """The folders of one row: copies of a template's, of `notebooks` a link to them."""

    def __init__(self, root: Path):
        self.root = root
        self.csv, self.images = root / "data/toy/toy.csv", root / "data/toy/images"
        self.weights, self.manifests = root / "weights", root / "manifests"
        self.notebooks, self.outputs = root / "notebooks", root / "outputs"


def snapshot(root: Path) -> dict[str, str]:
    """Every name below a folder, with what it is: the SHA-256 of a file's bytes, the target of a link."""
    seen = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            seen[str(path.relative_to(root))] = str(path.readlink()) if path.is_symlink() else content
    return seen


def extract(encoder, dataset, split: str, **options):
    return extract_features(encoder, dataset, split, num_workers=0, **options)


def good_weights(world: World):
    return load_encoder(TINY, weights=world.weights / "good.pth", device="cpu")


def answers(world: World) -> tuple:
    """What all that is not hostile answers."""
    encoder = good_weights(world)
    others = data.load_dataset(OTHER, world.root / "data", check="pixels")
    ham = manifests.load_dataset_manifest("ham10000", world.manifests)
    return encoder.digest, extract(encoder, others, "train").x.tobytes(), others.csv_sha256, ham


def good_tensors() -> dict[str, torch.Tensor]:
    model = encoders.build_model(TINY)
    encoders._draw_weights(model)
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template") / "world"
    lay_out(root / "data")
    shutil.copytree(root / "data/toy", root / "data/other")
    own = [name for name in manifests.list_datasets() if manifests.load_dataset_manifest(name).own]
    ignored = shutil.ignore_patterns("weights", *(f"{name}.*" for name in own))
    shutil.copytree(ROOT / "data_manifests", root / "manifests", ignore=ignored)
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=ignored)
    (root / "weights").mkdir()
    torch.save(good_tensors(), root / "weights/good.pth")
    record = root / "outputs/demo/records/ddi-linear_probe-random_tiny-seed0"
    write_small_record(record)
    Image.new("RGB", (8, 8)).save(root / "data/secret.png")  # outside of every image root
    return root


@pytest.fixture(scope="module")
def as_ever(template) -> tuple[tuple, bytes]:
    """The answers of an untouched world, and the test features of its dataset `toy`."""
    world = World(template)
    toy = data.load_dataset(TOY, world.root / "data")
    return answers(world), extract(good_weights(world), toy, "test").x.tobytes()


@pytest.fixture
def world(template, tmp_path, monkeypatch) -> World:
    shutil.copytree(template, tmp_path / "world", ignore=shutil.ignore_patterns("notebooks"))
    (tmp_path / "world/notebooks").symlink_to(template / "notebooks")
    monkeypatch.setattr(manifests, "MANIFEST_ROOT", tmp_path / "world/manifests")
    return World(tmp_path / "world")


# What is planted ------------------------------------------------------------------------------------------------------


def nothing(world: World) -> None:
    """The input is all in what is asked."""


def rows(*lines: str, header: str = "image,split,label") -> Callable:
    """The good rows, and these after them: the first stands in line 9."""
    return table("\n".join([header, *GOOD, *lines, ""]))


def table(content: str | bytes) -> Callable:
    content = content.encode() if isinstance(content, str) else content
    return lambda world: world.csv.write_bytes(content)


def noted(*notes: str) -> Callable:
    """The good rows with a fourth column of free text, the last of them these."""
    texts = ["x"] * (len(GOOD) - len(notes)) + list(notes)
    lines = [f"{row},{note}" for row, note in zip(GOOD, texts, strict=True)]
    return table("\n".join(["image,split,label,note", *lines, ""]))


def image(name: str, make: Callable[[Path], object], row: str | None = None) -> Callable:
    """An image of the ninth line, made at the path it is given."""

    def plant(world: World) -> None:
        (world.images / name).unlink(missing_ok=True)
        make(world.images / name)
        rows(row or f"{name},train,1")(world)

    return plant


def content(made: bytes) -> Callable:
    return lambda path: path.write_bytes(made)


def link(target: str) -> Callable:
    return lambda path: path.symlink_to(target)


def encoded(size: tuple[int, int] = (40, 30), kind: str = "JPEG", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, made: bytes) -> bytes:
    return struct.pack(">I", len(made)) + kind + made + struct.pack(">I", zlib.crc32(kind + made))


def png(width: int, height: int, pixels: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG of one bit a pixel, which claims a size whatever its pixels are."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    """A PNG that has all of its pixels, packed to next to nothing."""
    return png(width, height, zlib.compress(bytes(height * (1 + (width + 7) // 8)), 1))


def claiming(side: int) -> bytes:
    """A JPEG of 16 pixels that claims another size."""
    made = bytearray(encoded((16, 16)))
    at = made.find(b"\xff\xc0")
    made[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(made)


class Armed:
    """Leaves a file if it is ever unpickled by the ordinary loader."""

    def __init__(self, path: Path, call: Callable = os.system):
        self.path, self.call = path, call

    def __reduce__(self) -> tuple:
        return (self.call, (f"touch {self.path}",) if self.call is os.system else (str(self.path), "model"))


def weights(make: Callable[[Path, dict], object], suffix: str = "pth") -> Callable:
    """A weights file, made at a path from the tensors of a good one."""
    return lambda world: make(world.weights / f"hostile.{suffix}", good_tensors())


def saved(change: Callable[[dict], object], **options) -> Callable:
    return weights(lambda path, good: torch.save(change(good), path, **options))


def cut(path: Path, share: float = 0.66) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def truncated(path: Path, good: dict) -> None:
    torch.save(good, path)
    cut(path)


def truncated_old(path: Path, good: dict) -> None:
    torch.save(good, path, _use_new_zipfile_serialization=False)
    cut(path)


def truncated_safe(path: Path, good: dict) -> None:
    save_file(good, path)
    cut(path)


def flipped(path: Path, good: dict) -> None:
    torch.save(good, path)
    made = bytearray(path.read_bytes())
    made[len(made) // 2 : len(made) // 2 + 64] = bytes(64)
    path.write_bytes(made)


def packed(path: Path, good: dict, blocks: int = 1) -> None:
    """The same archive with its parts deflated, one of them `blocks` megabytes of zeros."""
    torch.save(good, path)
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, made in parts.items():
            with archive.open(name, "w") as file:
                for _ in range(blocks if name.endswith("data/3") else 0):
                    file.write(bytes(1 << 20))
                file.write(made)


def locked(path: Path, good: dict) -> None:
    """The same archive, each part marked as encrypted."""
    torch.save(good, path)
    made = bytearray(path.read_bytes())
    at = -1
    while (at := made.find(b"PK\x01\x02", at + 1)) >= 0:
        made[at + 8] |= 1
    path.write_bytes(made)


def written(made: bytes) -> Callable:
    return weights(lambda path, _: path.write_bytes(made))


def adding(key, value) -> Callable:
    return lambda good: good | {key: value}


def without(part: str) -> Callable:
    return lambda good: {key: value for key, value in good.items() if part not in key}


def each(change: Callable) -> Callable:
    return lambda good: {key: change(value) for key, value in good.items()}


def with_arguments(good: dict) -> dict:
    """As upstream saves a fine-tuned model."""
    return {"model": good, "optimizer": {}, "args": argparse.Namespace(lr=5e-4)}


def claimed(*shape: int) -> torch.Tensor:
    """More numbers than a memory holds, all of them the same one: a file of a few bytes."""
    return torch.zeros(1).expand(*shape)


def fine_tuned(key: str, value: torch.Tensor) -> Callable:
    return weights(lambda path, _: torch.save(FineTuneModel(TINY, 3).state_dict() | {key: value}, path))


def armed(*, old: bool = False, call: Callable = os.system) -> Callable:
    def plant(world: World) -> None:
        made = good_tensors() | {"surprise": Armed(world.root / "MARK", call)}
        torch.save(made, world.weights / "hostile.pth", _use_new_zipfile_serialization=not old)

    return plant


def armed_pickle(world: World) -> None:
    (world.weights / "hostile.pth").write_bytes(pickle.dumps({"surprise": Armed(world.root / "MARK")}))


def in_file(name: str, changes: dict[str, str]) -> Callable:
    def plant(world: World) -> None:
        text = (world.manifests / name).read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (world.manifests / name).write_text(text, encoding="utf-8")

    return plant


def ddi(modality: str, csv: str = "csv: DDI/ddi_clean.csv") -> Callable:
    """The manifest of `ddi` with another fourth line, and another CSV."""
    changes = {"modality: clinical": modality, "csv: DDI/ddi_clean.csv": csv}
    return in_file("datasets/ddi.yaml", changes)


def encoder_called(name: str) -> Callable:
    return in_file("encoders.yaml", {"\nrandom_tiny:\n": f"\n{json.dumps(name)}:\n"})


def manifest_of(made: bytes, name: str = "datasets/ddi.yaml") -> Callable:
    return lambda world: (world.manifests / name).write_bytes(made)


def a_folder(name: str) -> Callable:
    def plant(world: World) -> None:
        (world.root / name).unlink()
        (world.root / name).mkdir()

    return plant


LAUGHS = "\n".join(["a0: &a0 ha", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


# What reads it --------------------------------------------------------------------------------------------------------


def toy(world: World) -> tuple:
    """The dataset with every pixel, and the features of its images."""
    dataset = data.load_dataset(TOY, world.root / "data", check="pixels")
    encoder = good_weights(world)
    return dataset, {split: extract(encoder, dataset, split).x for split in ("train", "test")}


def names_only(world: World) -> data.Dataset:
    return data.load_dataset(TOY, world.root / "data", check="table")


def files_only(world: World) -> data.Dataset:
    return data.load_dataset(TOY, world.root / "data")


def encoder(world: World):
    (path,) = world.weights.glob("hostile.*")
    return load_encoder(TINY, weights=path, device="cpu")


def tuned(world: World):
    return load_finetuned(world.weights / "hostile.pth", TINY)


def dataset_manifest(world: World):
    return manifests.load_dataset_manifest("ddi", world.manifests)


def encoder_manifests(world: World):
    return manifests.list_encoders(world.manifests)


def typed(*arguments: str) -> Callable:
    """What a user types; a refusal is one that has status 2 and no traceback."""

    def read(world: World) -> str:
        said, complained = io.StringIO(), io.StringIO()
        everything = [argument.replace("WORLD", str(world.root)) for argument in arguments]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            status = run_all.main(["--output-root", str(world.outputs), *everything], world.notebooks)
        if status == 2:
            assert said.getvalue() == ""
            raise ValueError(complained.getvalue().strip())
        assert status == 0, complained.getvalue()
        return said.getvalue()

    return read


def asked(*given: str, protocol: str = "linear_probe", datasets: str = "demo", **selection) -> Callable:
    """A selection of runs, as flags."""
    flags = ["--plan", "--protocols", protocol, "--datasets", datasets]
    flags += [part for name, value in selection.items() for part in (f"--{name}", value)]
    return typed(*flags, *(part for text in given for part in ("-p", text)))


def planned(*given: str, protocol: str = "linear_probe") -> Callable:
    def read(world: World) -> jobs.Job:
        space = workspace.open_workspace("demo", output_root=world.outputs)
        model = "panderm_tiny" if protocol == "fine_tune" else "random_tiny"
        (run,) = plan.make_plan(space, ["demo"], [model], [protocol], overrides=given, notebooks=world.notebooks).runs
        return run

    return read


def own(name: str) -> Callable:
    return typed("--new-dataset", "WORLD/data/toy/toy.csv", "--images", "WORLD/data/toy/images", f"--name={name}")


# What must come of it -------------------------------------------------------------------------------------------------


def taken(kind: str = "", row: int | None = None, extra: int = 0) -> Callable:
    """The good rows are as ever, the test features to the last bit; `extra` more; a problem is noted with its row."""

    def look(result: tuple, toy_features: bytes) -> None:
        dataset, x = result
        cells = [[*line.split(",")[:2], int(line.split(",")[2])] for line in GOOD]
        assert dataset.table[["image", "split", "label"]].to_numpy().tolist()[: len(GOOD)] == cells
        assert len(dataset.table) == len(GOOD) + extra
        assert x["test"].tobytes() == toy_features
        assert np.isfinite(x["train"]).all() and len(np.unique(x["train"], axis=0)) == 3 + extra
        found = dataset.problems
        assert kind in ("", *found["kind"]), found
        assert row is None or row in found.loc[found["kind"] == kind, "row"].tolist()

    return look


def close(tolerance: float) -> Callable:
    """Weights whose features differ from the good ones' by so much at most, and are not the very same."""

    def look(model, toy_features: bytes) -> None:
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        good = encoders.build_model(TINY)
        good.load_state_dict(good_tensors())
        with torch.no_grad():
            difference = (model(images) - good.eval()(images)).abs().max()
        assert difference <= tolerance

    return look


def given(**wanted) -> Callable:
    """A planned run whose parameters are these, in value and in type, and whose names fit every disk."""

    def look(run: jobs.Job, toy_features: bytes) -> None:
        for name, value in wanted.items():
            assert (run.parameters[name], type(run.parameters[name])) == (value, type(value))
        for path in (run.record, run.log, run.output):
            assert len(path.name) < 220 and path.name.isascii() and path.name.isprintable()
        assert run.record.parent.name == "records"

    return look


# The table ------------------------------------------------------------------------------------------------------------


def section(read: Callable, frame: str, **inputs: tuple) -> dict[str, tuple]:
    """Rows of one reader; `frame` is what all their refusals say around the words of each."""
    framed = {name: words if callable(words) else frame.replace("WORDS", words) for name, (_, words) in inputs.items()}
    return {name: (plant, read, framed[name]) for name, (plant, _) in inputs.items()}


HEADER = "image,split,label\n"
TEXT = HEADER + "\n".join([*GOOD, ""])
QUOTED = "".join('"{}","{}","{}"\n'.format(*line.split(",")) for line in TEXT.split())
TWICE = TEXT.replace("\n", ",0\n").replace("label,0", "label,label")
MILLION = 1_000_000

CSV = section(
    toy,
    r"toy\.csv:?WORDS",
    **{
        "csv not UTF-8": (
            table(f"{TEXT}ä.png,train,0\n".encode("latin-1")),
            "9: the line is not UTF-8; save the file as",
        ),
        "csv in UTF-16": (table(TEXT.encode("utf-16")), r' the file is UTF-16; save it as "CSV UTF-8"'),
        "csv in UTF-16 without a mark": (table(TEXT.encode("utf-16-le")), " the file contains NUL .*; download it"),
        "csv with a byte order mark": (table(b"\xef\xbb\xbf" + TEXT.encode()), taken("byte order mark")),
        "csv with semicolons": (table(TEXT.replace(",", ";")), taken("separator")),
        "csv with tabs": (table(TEXT.replace(",", "\t")), taken("separator")),
        "csv with old Mac line ends": (table(TEXT.replace("\n", "\r")), taken("line ends")),
        "csv with leading blanks": (rows(" 8.png, train, 1"), taken("stray blanks", 9, extra=1)),
        "csv with empty lines first": (table(f"\n\n{TEXT}"), taken()),
        "csv with a column twice": (table(TWICE), taken("repeated column", 1)),
        "csv with its header again": (rows("image,split,label"), taken("unknown split", 9)),
        "csv with every cell in quotes": (table(QUOTED), taken()),
        "csv with an inch sign": (noted('5" wide'), taken()),
        "csv with a quote open to the end": (noted('"open', "x"), "7: .*unexpected end.*; check its quotes"),
        "csv with a quote open to the next": (noted('"a', 'b"c', "x"), "6: .*expected.*; check its quotes"),
        "csv with a quote open in a label": (rows('8.png,train,"1'), "9: .*; check its quotes"),
        "csv with a million columns": (
            table(f"x{',x' * MILLION}\n"),
            "1: 1,000,001 columns, .*; end each row with a line",
        ),
        "csv with a million cells in a row": (
            rows(f"8.png,train,1{',9' * MILLION}"),
            "9: 1000003 cells under 3 .*; quote",
        ),
        "csv with a million letters in a cell": (rows(f"8.png,train,{'1' * MILLION}"), "9: .*field larger .*; check"),
        "csv of nothing": (table(b""), " the file is empty; it needs a header line"),
        "csv with a header only": (table(HEADER), " no row has the split `train`; name splits train, val, test"),
        "csv that is a zip file": (table(b"PK\x03\x04\x14\0\xff\xff"), "1: the line is not UTF-8; save the file as"),
        "csv that is a web page": (
            table("<!DOCTYPE html><p>log in"),
            "1: no column `image` among <!DOC.*; rename or add",
        ),
        "csv that is a folder": (a_folder("data/toy/toy.csv"), r"; data_root is .*Set data_root .*or get the data"),
        "split empty": (rows("8.png,,1"), taken("unknown split", 9)),
        "split in capitals": (rows("8.png,TRAIN,1"), taken("unknown split", 9)),
        "split without a row": (table(TEXT.replace("train", "val")), " no row has the split `train`; name splits"),
        "label 1.0": (rows("8.png,train,1.0"), taken(extra=1)),
        "label NaN": (rows("8.png,train,NaN"), r"9: \[8\.png\] the label is empty .*; correct or remove the row"),
    },
)
LABELS = {label: label for label in ("-1", "0.5", "True", "inf")}
CSV |= section(
    toy,
    r"toy\.csv:9: \[8\.png\] label 'WORDS' is not a class in `label`; valid are 0 = a, .*; correct or remove the row",
    **{
        f"label {name}": (rows(f"8.png,train,{label}"), label.replace(".", r"\."))
        for name, label in {**LABELS, "3 of 3 classes": "3", "of 400 digits": "9" * 400, "by name": "melanoma"}.items()
    },
)
MANY_ROWS = rows(*(f"no{i}.png,train,1" for i in range(10_000)))
CSV["csv with 10,000 bad rows"] = (MANY_ROWS, files_only, r"toy\.csv:18: (.|\n)*and 9,990 more of this kind")

IMAGES = section(
    files_only,
    r"toy\.csv:9: \[WORDS.*; (add it or remove the row|put the file below)",
    **{
        "path out of the root": (rows("../../secret.png,train,1"), r".*\] the path leaves the image root via `\.\.`"),
        "path out by a folder": (rows("x/../../8.png,train,1"), r".*\] the path leaves the image root via `\.\.`"),
        "path out by backslashes": (rows("..\\..\\secret.png,train,1"), r".*\] the path leaves the image root via"),
        "path absolute": (rows("/etc/hostname,train,1"), r"/etc/hostname\] the path is absolute"),
        "path with a drive": (rows("C:\\8.png,train,1"), r"C:.*\] the path is absolute"),
        "path of 300 letters": (rows(f"{LONG}.png,train,1"), r"a+\.png\] the file is missing"),
        "path of 6,000 letters": (rows("a/" * 3000 + "8.png,train,1"), ".* the image name has 6,005 characters"),
        "path from right to left": (rows("\u200f8.png,train,1"), r"\\u200f8\.png\] the file is missing"),
        "path with orders for a terminal": (
            rows(f"{BELL}8.png,train,1"),
            r"\\x1b\[2J\\x078\.png\] the file is missing",
        ),
        "path of two lines": (rows('"8\n.png",train,1'), r"8\\n\.png\] the file is missing"),
        "link out of the root": (image("l.png", link("../../secret.png")), r"l\.png\] .* via a symbolic link"),
        "link of a folder out of the root": (
            image("up", link("../.."), "up/secret.png,train,1"),
            ".* via a symbolic link",
        ),
        "link to itself": (image("l.png", link("l.png")), r"l\.png\] the file is missing \(there is a broken link"),
        "link to nothing": (
            image("l.png", link("none.png")),
            r"l\.png\] the file is missing \(there is a broken link",
        ),
        "folder as image": (
            image("f.png", Path.mkdir),
            r"f\.png\] the file is missing \(there is a folder with its name",
        ),
        "pipe as image": (image("p.png", os.mkfifo), r"p\.png\] the file is missing \(there is a pipe or device"),
    },
)
UNFOLDS = png(4, 4, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27), 1)))
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
IMAGES |= section(
    toy,
    r"toy\.csv:9: \[8\.(png|jpg)\] .*/images/8\.(png|jpg): WORDS",
    **{
        "image of no bytes": (image("8.png", content(b"")), "the file is empty; download it again"),
        "image cut off": (
            image("8.jpg", content(encoded((80, 80))[:-900])),
            "the file is truncated .*; download it again",
        ),
        "image of text": (image("8.jpg", content(b"hello, world")), "the file is not a readable image"),
        "image of a web page": (image("8.jpg", content(b"<html>")), "the file is a web page .*; download it again"),
        "image of PostScript": (image("8.jpg", content(SCRIPT)), "the file is not a readable image"),
        "image of 900 million pixels": (
            image("8.png", content(black(30_000, 30_000))),
            "more pixels .*; scale the file",
        ),
        "image that claims 900 million": (image("8.jpg", content(claiming(30_000))), "more pixels .*; scale the file"),
        "image that claims 144 million": (
            image("8.png", content(png(12_000, 12_000))),
            "12000 x 12000 .*; scale the file",
        ),
        "image that claims 2^62": (
            image("8.png", content(png(2**31 - 1, 2**31 - 1))),
            "more pixels .*; scale the file",
        ),
        "image with a text that unfolds": (
            image("8.png", content(UNFOLDS)),
            "the file is not a readable image .*too large",
        ),
        "image of one pixel": (image("8.png", content(encoded((1, 1), "PNG"))), taken(extra=1)),
        "image of 30,000 x 10": (image("8.png", content(encoded((30_000, 10), "PNG"))), taken(extra=1)),
        "image of 1 x 30,000": (image("8.png", content(encoded((1, 30_000), "PNG"))), taken(extra=1)),
        "image in PNG called jpg": (image("8.jpg", content(encoded(kind="PNG"))), taken(extra=1)),
        "image with broken EXIF": (image("8.jpg", content(encoded(exif=b"Exif\0\0garbage"))), taken(extra=1)),
        "image by a link within the root": (image("9.png", link("8.png")), taken(extra=1)),
    },
)

CALLS = r"hostile\.pth: refused\. .*would call WORDS, .*None of it was run\. Do not use this file"
WEIGHTS = section(
    encoder,
    CALLS,
    **{
        "pickle with code": (armed_pickle, r"posix\.system"),
        "pickle with code in a zip file": (armed(), r"posix\.system"),
        "pickle with code in the old format": (armed(old=True), r"posix\.system"),
        "pickle with torch's own code": (armed(call=torch.hub.load), r"torch\.hub\.load"),
    },
)
WEIGHTS |= section(
    encoder,
    r"hostile\..*: WORDS.* The right file is panderm_bb_data6_checkpoint-499\.pth",
    **{
        "pickle of a list": (saved(lambda good: [1, 2]), "contains a list, not named tensors"),
        "weights of no bytes": (weights(lambda path, _: path.touch()), r"the file is empty \(0 bytes\)"),
        "weights of a web page": (
            written(b"\n<!DOCTYPE html><title>Google Drive - Quota"),
            "this is an HTML page saved",
        ),
        "weights of a pointer": (
            written(b"version https://git-lfs.github.com/spec/v1\n"),
            "this is .*Run `git lfs pull`",
        ),
        "weights of text": (written(b"none"), "not a PyTorch or safetensors file"),
        "weights cut off": (weights(truncated), r"truncated after [\d,]+ bytes"),
        "weights cut off, old format": (weights(truncated_old), "truncated, damaged"),
        "weights cut off, safetensors": (weights(truncated_safe, "safetensors"), "truncated or damaged safetensors"),
        "weights with flipped bytes": (weights(flipped), "damaged: the checksum of"),
        "weights packed": (weights(packed), r"compressed: it would unpack to [\d,]+ bytes"),
        "weights encrypted": (weights(locked), "truncated .*or damaged: .*encrypted"),
        "weights with a header of 2^63 bytes": (
            written(struct.pack("<Q", 2**63) + b"{}"),
            "truncated or damaged safet",
        ),
        "weights fine-tuned": (
            saved(lambda good: {"model": good, "epoch": 3}),
            r"this is a fine-tuned .*\(it contains epoch",
        ),
        "weights fine-tuned with arguments": (
            saved(with_arguments),
            r"this is a fine-tuned .*\(it contains args, model, opt",
        ),
        "weights fine-tuned, tensors alone": (saved(adding("fc_norm.weight", torch.zeros(48))), "this is a fine-tuned"),
        "keys of another architecture": (saved(lambda good: {BELL: torch.zeros(3)}), r"contains .* \(it has '\\x1b"),
        "keys missing": (
            saved(without("q_bias")),
            r".*2 of 36 tensors are missing: blocks\.0\.attn\.q_bias, blocks\.1",
        ),
        "keys unknown": (
            saved(adding("blocks.0.surprise", torch.zeros(3))),
            r".*1 tensors are unknown .*blocks\.0\.sur",
        ),
        "keys beside tensors": (saved(adding("note", "hello")), "besides tensors it contains note"),
        "keys that are numbers": (saved(adding(1, torch.zeros(2))), "besides tensors it contains 1"),
        "shape of another image": (
            saved(adding("pos_embed", torch.zeros(1, 577, 48))),
            r".*is \[1, 577, 48\], should be \[",
        ),
        "shape of another width": (
            saved(each(lambda x: torch.cat([x, x], -1))),
            "wrong size: the file is 96 wide with 2",
        ),
        "shape without sides": (saved(each(lambda x: torch.tensor(1.0))), "wrong size: the file is 0 wide"),
        "shape of 10^15 numbers": (
            saved(adding("norm.bias", claimed(10**15))),
            r".*norm\.bias is \[10{15}\], should be \[48",
        ),
        "dtype of whole numbers": (saved(each(torch.Tensor.long)), r".*36 tensors are not dense .*\(torch\.int64\)"),
        "dtype complex": (saved(adding("norm.bias", torch.zeros(48) * 1j)), r".*norm\.bias \(torch\.complex64\)"),
        "dtype sparse": (saved(adding("norm.bias", torch.ones(48).to_sparse())), r".*norm\.bias \(sparse, quantised"),
        "dtype half": (saved(each(torch.Tensor.half)), close(0.02)),
        "dtype double": (saved(each(torch.Tensor.double)), close(0.0)),
        "NaN inside": (
            saved(adding("norm.bias", torch.full((48,), torch.nan))),
            r".*NaN or infinite values .*: norm\.bias",
        ),
        "infinite as float32": (
            saved(adding("norm.bias", 1e300 * torch.ones(48).double())),
            ".*NaN or infinite values",
        ),
    },
)
WEIGHTS |= section(
    tuned,
    r"hostile\.pth: WORDS.* The right file is best\.safetensors",
    **{
        "fine-tuned with 10^9 classes": (
            fine_tuned("head.weight", claimed(10**9, 48)),
            r".*\[10{9}, 48\].*up to 10,000",
        ),
        "fine-tuned with no class": (
            fine_tuned("head.weight", torch.tensor(1.0)),
            r"head\.weight is \[\], .*should be",
        ),
        "fine-tuned with NaN": (fine_tuned("head.bias", torch.full((3,), torch.nan)), r".*not finite .*: head\.bias"),
        "fine-tuned with whole numbers": (fine_tuned("head.bias", torch.zeros(3).int()), r".*not plain .*: head\.bias"),
    },
)
WEIGHTS["fine-tuned with code"] = (armed(), tuned, CALLS.replace("WORDS", r"posix\.system"))

MANIFESTS = section(
    dataset_manifest,
    r"ddi\.yaml: WORDS",
    **{
        "yaml of a billion laughs": (manifest_of(LAUGHS.encode()), r"line 2: .*aliases \(\*name\) .*; write the value"),
        "yaml that merges": (ddi("modality: &a clinical\ndoi: *a"), r"line 5: .*aliases \(\*name\) .*; write the"),
        "yaml of a million keys": (manifest_of(b"k: 1\n" * MILLION), "5,000,000 bytes; .* at most 262,144: shorten"),
        "yaml deep": (manifest_of(b"? " + b"[" * 900 + b"]" * 900), "not valid YAML: brackets nested too deeply"),
        "yaml too deep": (manifest_of(b"a: " + b"[" * 5000), "line 1: not valid YAML: exceeded maximum nesting depth"),
        "yaml with code": (
            ddi('modality: !!python/object/apply:os.system ["touch MARK"]'),
            "line 4: .*tags .*; remove the tag",
        ),
        "yaml with a tag": (ddi("modality: !!timestamp x"), "line 4: .*tags .*; remove the tag"),
        "yaml with a date that is none": (ddi("modality: 2024-13-45"), "line 4: .*month .*; write text in quotes"),
        "yaml with 5,000 digits": (ddi(f"modality: {'9' * 5000}"), "line 4: .*; write text in quotes"),
        "yaml with a key twice": (ddi("modality: x\nmodality: y"), "line 5: .*'modality' is given twice; keep one"),
        "yaml with an unknown key": (ddi("modalty: clinical"), "key 'modalty' is unknown; did you mean 'modality'"),
        "yaml with a list for a text": (ddi("modality: [a]"), "modality: is a list; write text"),
        "yaml with a number for a text": (ddi("modality: 7"), "modality: is the number 7; write text"),
        "yaml not UTF-8": (manifest_of("name: dé".encode("latin-1")), "byte 7 is not UTF-8; save the file as UTF-8"),
        "yaml in UTF-16": (manifest_of("name: x".encode("utf-16")), "byte 0 is not UTF-8; save the file as UTF-8"),
        "yaml with a NUL": (manifest_of(b"name: \0"), "not valid YAML"),
        "yaml of nothing": (manifest_of(b""), "is empty; write `key: value` lines"),
        "yaml that is a list": (manifest_of(b"- a"), "is a list; write `key: value` lines"),
        "yaml with a path out of the root": (
            ddi("modality: x", "csv: ../x"),
            r"csv: '\.\./x' is not below .*; write it",
        ),
    },
)
MANIFESTS |= section(
    encoder_manifests,
    r"encoders\.yaml: WORDS",
    **{
        "yaml that is a folder": (a_folder("manifests/encoders.yaml"), "cannot be read .*; put the file there"),
        "encoder called ../x": (encoder_called("../x"), r"\.\./x\.name: .*file names .*; write x$"),
        "encoder called a/b": (encoder_called("a/b"), r"a/b\.name: .*file names .*; write a_b$"),
        "encoder called CON": (encoder_called("CON"), r"CON\.name: .*; write con_data$"),
        "encoder called by 300 letters": (encoder_called(LONG), r".*at most 60\); write a{60}$"),
        "encoder called from right to left": (
            encoder_called("\u200fmine"),
            r"line \d+: .*the key '\\u200fmine' has .*; retype it",
        ),
    },
)

MANY = {"epochs": 7, "warmup_epochs": 2, "batch_size": 34, "tta": 7, "replicates": 77, "weighted_sampling": False}
SHARES = ("lr", "layer_decay", "drop_path", "weight_decay", "mixup", "cutmix", "smoothing")
MANY |= dict.fromkeys(SHARES, 0.123456789)
HALVES = "0.5," * 500 + "1"
TUNING, EFFICIENCY = {"protocol": "fine_tune"}, {"protocol": "label_efficiency"}


def weighing(value: str) -> str:
    return f"weighted_sampling={value}"


GIVEN = {
    "parameter unknown": (asked("trian_fraction=0.1"), "did you mean -p train_fraction=0.1"),
    "parameter without a value": (asked("solver"), "-p solver: no value; write -p solver=VALUE"),
    "parameter without a name": (asked("=1"), "linear_probe has no such parameter; known: weights"),
    "parameter called by two lines": (asked("x\ny=1"), "linear_probe has no such parameter; known: weights"),
    "parameter not a whole number": (asked("batch_size=many"), "batch_size=many: write a whole number, 1 or more"),
    "parameter left open, not a whole number": (
        asked("batch_size=many", **TUNING),
        "batch_size=many: write an even number, 2 or more, or None",
    ),
    "parameter left open, no number": (asked("lr=abc", **TUNING), "lr=abc: write a number above 0, or None"),
    "parameter infinite": (asked("lr=1e999", **TUNING), "lr=1e999: write a number above 0, or None"),
    "parameter not a truth value": (asked(weighing("maybe"), **TUNING), "maybe: write True or False, or None"),
    "parameter false in small letters": (planned(weighing("false"), **TUNING), given(weighted_sampling=False)),
    "parameter a number for auto": (planned("micro_batch=8", **TUNING), given(micro_batch=8)),
    "parameter a number for a text": (planned("trackers=5", **TUNING), given(trackers="5")),
    "parameter of code": (planned(f"trackers={CODE}", **TUNING), given(trackers=CODE)),
    "parameter of code for a choice": (asked(f"monitor={CODE}", **TUNING), "write one of recall, acc, or None"),
    "parameter of quotes and line breaks": (planned("trackers='\"\n\\", **TUNING), given(trackers="'\"\n\\")),
    "parameter of 100,000 brackets": (planned(f"trackers={'(' * 100_000}", **TUNING), given(trackers="(" * 100_000)),
    "parameter of 200,000 minus signs": (asked(f"lr={'-' * 200_000}1", **TUNING), "1: write a number above 0"),
    "parameter of shares that is a path": (asked("fractions=../../x", **EFFICIENCY), "write numbers above 0, up to 1"),
    "parameter of 500 shares": (planned(f"fractions={HALVES}", **EFFICIENCY), given(fractions=HALVES)),
    "parameters all at once": (planned(*(f"{name}={MANY[name]}" for name in MANY), **TUNING), given(**MANY)),
    "parameter of a file from right to left": (
        asked("checkpoint=../\u200fx/a b;c.pth", **TUNING),
        "write the path of a file or folder that exists",
    ),
    "parameter of a file by 300 letters": (asked(f"weights={LONG}"), "File name too long"),
    "parameter of a home of nobody": (
        asked("weights=~nobody_of_these/x"),
        "~nobody_of_these/x: .*; write the absolute path",
    ),
    "seed negative": (asked(seeds="-1"), "seed -1: write a whole number, 0 to 4294967295"),
    "seed of 30 digits": (asked(seeds="1" * 30), "seed 1{30}: write a whole number, 0 to 4294967295"),
}
STRANGE = {"../x": "x", "a/b": "a_b", "CON": "con_data", "by 300 letters": "a{60}", "from right to left": "mine"}
SPELLED = {"by 300 letters": LONG, "from right to left": "\u200fmine"}
NO_NAME = r"the name '.*' is not a valid file name everywhere \(lower-case letters.*\); write --name {}$"
for called, proper in STRANGE.items():
    name = SPELLED.get(called, called)
    GIVEN[f"dataset asked for as {called}"] = (
        asked(datasets=name),
        "^run_all.py: dataset '.*' is unknown; .*makes one$",
    )
    GIVEN[f"encoder asked for as {called}"] = (
        asked(encoders=name),
        "^run_all.py: encoder '.*' is unknown; .*known: pand",
    )
    GIVEN[f"protocol asked for as {called}"] = (
        asked(protocol=name),
        "^run_all.py: protocol '.*' is unknown; known: .*linear_probe",
    )
    GIVEN[f"profile asked for as {called}"] = (typed("--plan", "--profile", name), 'is unknown; write profile = "demo"')
    GIVEN[f"own data called {called}"] = (own(name), NO_NAME.replace("{}", proper))
GIVEN |= {
    "dataset asked for by another way": (asked(datasets="../datasets/ddi"), "dataset '../datasets/ddi' is unknown"),
    "encoder asked for as timm:../x": (asked(encoders="timm:../x"), r"encoder 'timm:\.\./x' is unknown; .*timm:<model"),
    "own data called nul": (own("nul"), NO_NAME.replace("{}", "nul_data")),
    "own data called by two lines": (own("a\nb"), NO_NAME.replace("{}", "a_b")),
    "own data in a csv by 300 letters": (typed("--new-dataset", LONG, "--images", ".", "--name", "x"), "name too long"),
    "own data in a home of nobody": (
        typed("--new-dataset", "~nobody_of_these/x", "--images", ".", "--name", "x"),
        "no such user; write the absolute path",
    ),
    "outputs by 300 letters": (typed("--plan", "--output-root", f"WORLD/{LONG}"), "File name too long"),
    "outputs by what is no UTF-8": (typed("--plan", "--output-root", "WORLD/\udcff"), "not UTF-8; rename that folder"),
}

TABLE = {**CSV, **IMAGES, **WEIGHTS, **MANIFESTS, **{name: (nothing, *row) for name, row in GIVEN.items()}}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:.*quantiz:UserWarning")
@pytest.mark.parametrize(("plant", "read", "expected"), [pytest.param(*row, id=name) for name, row in TABLE.items()])
def test_it_is_refused_or_taken_as_said_and_nothing_else_is_touched(world, as_ever, plant, read, expected):
    plant(world)
    before = snapshot(world.root), snapshot(world.notebooks)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as refused:
            read(world)
        assert all(line.isprintable() for line in str(refused.value).splitlines())
    else:
        expected(read(world), as_ever[1])
    assert (snapshot(world.root), snapshot(world.notebooks)) == before
    assert answers(world) == as_ever[0]
    assert not Path("MARK").exists()


def test_the_table_is_whole():
    assert len(TABLE) == len(CSV) + len(IMAGES) + len(WEIGHTS) + len(MANIFESTS) + len(GIVEN) >= 180


@pytest.mark.parametrize("writer", ["zip", "old", "pickle"])
def test_the_pickles_were_armed(world, writer):
    {"zip": armed(), "old": armed(old=True), "pickle": armed_pickle}[writer](world)
    path = world.weights / "hostile.pth"
    pickle.loads(path.read_bytes()) if writer == "pickle" else torch.load(path, weights_only=False)
    assert (world.root / "MARK").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_damaged_bytes_raise_encoder_errors_only(tmp_path, kind):
    """Whatever the damage, the message names the file: 400 random corruptions of each format."""
    rng, path = np.random.default_rng(0), tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    small = {key: value for key, value in good_tensors().items() if "norm" in key}
    save_file(small, path) if kind == "safetensors" else torch.save(
        small, path, _use_new_zipfile_serialization=kind == "zip"
    )
    made = np.frombuffer(path.read_bytes(), np.uint8)
    for i in range(400):
        damaged, within = made.copy(), min(len(made), int(rng.choice([60, 900, 10**6])))
        damaged[rng.integers(0, within, rng.integers(1, 5))] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(made) + 1) if i % 3 == 0 else None].tobytes())
        with pytest.raises(EncoderError, match="w\\."):  # it lacks most tensors, if nothing else
            load_encoder(TINY, weights=path, device="cpu")


WATCH = """
import resource, sys, json, warnings
from pathlib import Path
import panderm_utils
from panderm_utils.encoders import loading as encoders
from panderm_utils.data import image_files
from panderm_utils.manifests import reading as manifests
from panderm_utils.manifests import typed_yaml
warnings.simplefilter("ignore")
read = {".png": image_files.open_image, ".jpg": image_files.open_image, ".gif": image_files.open_image}
read |= {".webp": image_files.open_image, ".yaml": typed_yaml.load_yaml}
read[".pth"] = lambda path: encoders.load_encoder(manifests.load_encoder_manifest("panderm_tiny"), path, "cpu")
read[".pth"](manifests.MANIFEST_ROOT / "weights/panderm_tiny.pth")
for path in map(Path, sys.argv[1:]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said = str(type(read[path.suffix](path)))
    except ValueError as error:
        said = str(error)
    print(json.dumps([path.name, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, said]))
"""


def test_a_bomb_takes_no_memory(tmp_path):
    """In a process of its own, whose peak memory is its own; each would take from 300 MB to all there is."""
    if sys.platform == "darwin":
        pytest.skip("macOS counts peak memory in bytes, and otherwise")
    bombs = {
        "pixels.png": black(30_000, 30_000),
        "claim.jpg": claiming(30_000),
        "screen.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b"," + bytes(4)
        + struct.pack("<HH", 65535, 65535) + b"\0\x02\x02\x44\x01\0;",
        "canvas.webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\xfe\xbf\xff\x0f\x07\x10\x11\xfd\x0fDD\xff\x03",
        "laughs.yaml": LAUGHS.encode(),
        "brackets.yaml": b"a: " + b"[" * 200_000,
    }  # fmt: skip
    for name, made in bombs.items():
        (tmp_path / name).write_bytes(made)
    packed(tmp_path / "packed.pth", good_tensors(), blocks=300)
    torch.save({"cls_token": torch.zeros(1).expand(1, 1, 192), "x": torch.zeros(1).expand(10**15)}, tmp_path / "a.pth")
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", WATCH, *paths], cwd=ROOT, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(path).name for path in paths] == [name for name, _, _ in found], done.stderr
    for name, megabytes, said in found:
        assert megabytes < 100, (name, megabytes)
        assert f"{name}: " in said, said
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5_000_000


@pytest.mark.parametrize("how", ["renamed over it", "written into it"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_weights_file_that_is_replaced_while_it_is_read_is_not_believed(world, monkeypatch, how, suffix):
    """The new file has the size and the times of the old one: what a copy that keeps times leaves."""
    path, other = world.weights / f"hostile.{suffix}", world.root / f"hostile.{suffix}"  # a zip file holds its name
    write = save_file if suffix == "safetensors" else torch.save
    write(good_tensors(), path)
    write({key: value + 1 for key, value in good_tensors().items()}, other)
    stat, read = path.stat(), encoders.read_tensors
    assert other.stat().st_size == stat.st_size

    def and_replace(*arguments):
        tensors = read(*arguments)
        time.sleep(0.05)  # a tick of the disk's clock
        other.replace(path) if how == "renamed over it" else path.write_bytes(other.read_bytes())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return tensors

    monkeypatch.setattr(encoders, "read_tensors", and_replace)
    with pytest.raises(EncoderError, match=rf"hostile\.{suffix}: it was changed or replaced while it was read; start"):
        encoder(world)
    monkeypatch.undo()
    assert encoder(world).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_features_belong_to_the_bytes_that_were_loaded_whatever_is_in_the_file_by_now(world):
    path, cache = world.weights / "hostile.pth", world.outputs / "cache"
    others = data.load_dataset(OTHER, world.root / "data")

    def features_of(tensors: dict | None):
        if tensors is not None:
            stat = path.stat() if path.exists() else None
            torch.save(tensors, path)
            if stat:
                assert path.stat().st_size == stat.st_size
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        model = encoder(world)
        assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        return model, extract(model, others, "train", cache=cache)

    first, features = features_of(good_tensors())
    shards = snapshot(cache)
    second, changed = features_of({key: value + 0.1 for key, value in good_tensors().items()})
    assert second.digest != first.digest
    assert (changed.from_cache, changed.computed) == (0, 3)
    assert not np.allclose(changed.x, features.x)
    assert snapshot(cache).items() > shards.items()  # the first run's are as they were
    assert extract(first, others, "train").x.tobytes() == features.x.tobytes()  # a run under way keeps its weights
    again = features_of(good_tensors())[1]
    assert (again.from_cache, again.computed) == (3, 0)
    assert again.x.tobytes() == features.x.tobytes()


HOSTILE_TEXT = """'"\"""\\n{seed} $HOME `id` %s \u200f\u00e9\ttab\nimport os; os.system("touch MARK") # """


def test_papermill_hands_a_text_on_as_it_is_and_writes_to_no_other_folder(tmp_path):
    """A real kernel, in a folder whose name papermill would fill in with a parameter."""
    keep = """\
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
from tests.small_record import write_small_record
space = workspace.open_workspace(profile, output_root=output_root)
folder = space.records / results.run_id(linear_probe.PROTOCOL, profile, dataset, encoder, seed)
write_small_record(folder, seen=behaviour)
"""
    notebooks, outputs = tmp_path / "notebooks", tmp_path / "out{seed} \"x'"
    for name in ("ham10000", "demo"):
        write_notebook(notebooks / f"linear_probe/{name}.ipynb", PARAMETERS.replace("demo", name, 1), keep)
    space = workspace.open_workspace("demo", output_root=outputs)
    given = [f"behaviour={HOSTILE_TEXT}"]
    planned = plan.make_plan(space, ["demo"], ["random_tiny"], ["linear_probe"], overrides=given, notebooks=notebooks)
    (outcome,) = batch.run_batch(planned, say=lambda line: None)
    assert outcome.status == "done", outcome.error
    assert json.loads((planned.runs[0].record / "record.json").read_text())["seen"] == HOSTILE_TEXT
    assert planned.runs[0].output.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notebooks", outputs.name])
    assert not (ROOT / "MARK").exists()


def test_a_batch_ends_the_good_run_beside_bad_data_and_code_in_a_parameter_never_runs(tmp_path):
    """Two real runs of the shipped notebooks, of which one has an image cut off; a third would get code as device."""
    rng = np.random.default_rng(0)
    for name in ("ddi", "hiba"):
        study = manifests.load_dataset_manifest(name)
        folder, csv = tmp_path / "data" / study.image_root, tmp_path / "data" / study.csv
        folder.mkdir(parents=True)
        names = [f"{i}{study.image_suffix}" for i in range(48)]
        for file in names:
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / file)
        lines = [f"{file},{'train' if i < 24 else 'test'},{i % 2}" for i, file in enumerate(names)]
        csv.write_text("\n".join([f"image,split,{study.label_column}", *lines, ""]))
    cut(folder / "40.jpg", 0.8)
    before = snapshot(tmp_path / "data")
    space = workspace.open_workspace("paper", data_root=tmp_path / "data", output_root=tmp_path / "outputs")

    def runs(datasets: list[str], *given: str, seed: int = 0) -> tuple[jobs.Job, ...]:
        selection = (datasets, ["random_tiny"], ["linear_probe"], [seed])
        return plan.make_plan(space, *selection, overrides=["replicates=20", "allow_incomplete=True", *given]).runs

    code = CODE.replace("MARK", str(tmp_path / "MARK"))
    with pytest.raises(PlanError, match="write one of auto, cpu, cuda"):
        runs(["ddi"], f"device={code}", seed=1)
    planned = jobs.Plan(space, runs(["ddi", "hiba"]), ())
    good, bad = batch.run_batch(planned, batch.BatchOptions(jobs=2), say=lambda line: None)
    assert (good.status, bad.status) == ("done", "failed"), good.error
    assert bad.cell == "features"
    for words in ("CSV row 42: ", "40.jpg: the file is truncated", "download it again"):
        assert words in bad.error
    assert snapshot(tmp_path / "data") == before
    assert [path.name for path in space.records.iterdir()] == [good.job.record.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outputs"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["cache", "paper"]
