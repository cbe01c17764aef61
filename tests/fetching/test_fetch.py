"""`--fetch` as a user types it: archives of upstream's layouts and of others, on a local site and in local folders."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

import run_all
from panderm_utils import disk, manifests
from panderm_utils.fetching import archives, repositories
from panderm_utils.fetching.errors import FetchError
from tests.fetching.site_on_loopback import QUOTA_PAGE

ROOT = Path(__file__).parents[2]
HAM = manifests.load_dataset_manifest("ham10000")
NAMES = [f"ISIC_{i:07}.jpg" for i in range(24306, 24316)]
TABLE = "image,split,label,lesion_id\n" + "".join(
    f"{name},{('train', 'val', 'test')[i % 3]},{i % 7},HAM_{i}\n" for i, name in enumerate(NAMES)
)
IMAGES = {name: f"pixels of {name}".encode() for name in NAMES}
CLEAN = {"ISIC2018_splits/HAM_clean.csv": TABLE.encode()} | {f"ISIC2018/{name}": IMAGES[name] for name in NAMES}
SPLIT_TABLE = "HAM10000_clean/ISIC2018_splits/HAM_clean.csv"
HALVES = {f"part_{i % 2}/{name}": IMAGES[name] for i, name in enumerate(NAMES)} | {"HAM_clean.csv": TABLE.encode()}


def drive_id(name: str) -> str:
    return re.search(r"/d/([^/]+)/", manifests.load_dataset_manifest(name).access[0].url)[1]


DRIVE_ID = drive_id("ham10000")


def packed(files: dict[str, bytes], kind: str = "zip") -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode=kind) as file:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def data(tmp_path):
    return tmp_path / "D"


def locked(data):
    return json.loads((data / "fetched.lock.json").read_text())


def test_the_first_call_shows_what_there_is_and_downloads_nothing(fetch, site, data):
    status, text, _ = fetch()
    assert status == 1
    assert site.requests == []
    profile = manifests.load_profile("paper")
    for name in (*profile.datasets, *profile.encoders):
        assert re.search(rf"^{name} .* (automatic|by hand) ", text, re.MULTILINE), name
    assert "ham10000 " in text
    assert "CC BY-NC 4.0: name the authors, no commercial use" in text
    assert "if you accept its terms: python run_all.py --fetch ham10000 --data-root" in text
    assert f"save panderm_ll_data6_checkpoint-499.pth in {data.parent / 'W'}" in text
    assert "open https://www.fc.up.pt/addi/ph2%20database.html (download form)" in text
    assert not (data / "licences.accepted.json").exists()


@pytest.mark.parametrize(
    "archive",
    [
        packed(below("HAM10000_clean", CLEAN)),
        packed(CLEAN),
        packed(below("some/other folder", CLEAN) | {"__MACOSX/ISIC2018/._x.jpg": b"x", "some/readme.txt": b"x"}),
        packed(below("ham10000_CLEAN", CLEAN), "w:gz"),
        packed(HALVES, "w"),
    ],
    ids=["as upstream", "no top folder", "other top folder, extras", "tar.gz, other case", "images in two folders"],
)  # fmt: skip
def test_an_archive_of_drive_ends_in_the_layout_of_the_manifest(fetch, site, data, archive):
    site.publish(f"/drive/{DRIVE_ID}", archive)
    site.confirm.add(DRIVE_ID)
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 0, text
    assert "11 files put in place" in text
    assert "next: " in text and "--check-data ham10000 --data-root" in text
    assert tree(data / "HAM10000_clean") == CLEAN
    assert {*locked(data)} == {SPLIT_TABLE, next((data / "downloads").glob("*/*")).relative_to(data).as_posix()}
    entry = next(entry for file, entry in locked(data).items() if file != SPLIT_TABLE)
    assert entry["sha256"] == hashlib.sha256(archive).hexdigest()
    assert (entry["url"], entry["size"]) == (HAM.access[0].url, len(archive))
    assert len(site.requests) == 2  # the page that warns, the file
    assert not list(data.rglob("*.part*"))


def test_what_is_there_is_not_fetched_again_and_needs_no_acceptance(fetch, site, data):
    write(data / "HAM10000_clean", CLEAN)
    status, text, _ = fetch("ham10000")
    assert (status, site.requests) == (0, [])
    assert re.search(r"^ham10000 .* there$", text, re.MULTILINE)


def test_an_acceptance_is_recorded_with_its_text_and_date_and_asked_for_once(fetch, site, data, monkeypatch):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    assert fetch("ham10000")[0] == 1
    assert fetch("ham10000", "bcn20000", "--accept-licence", "bcn20000")[0] == 1
    assert not [path for path, _ in site.requests if DRIVE_ID in path]
    assert fetch("ham10000", "--accept-licence", "ham10000")[0] == 0
    record = json.loads((data / "licences.accepted.json").read_text())
    assert {*record} == {"bcn20000", "ham10000"}
    assert record["ham10000"]["licence"] == "CC BY-NC 4.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["ham10000"]["date"])
    record["ham10000"]["licence"] = "another text"  # the licence has changed since
    (data / "licences.accepted.json").write_text(json.dumps(record))
    (data / SPLIT_TABLE).unlink()
    for path in (data / "downloads").rglob("*.zip"):
        path.unlink()
    assert "licence not accepted" in fetch("ham10000")[1]


def test_accepting_what_is_not_fetched_is_an_error(fetch):
    status, _, errors = fetch("ham10000", "--accept-licence", "ddi")
    assert status == 2
    assert "--accept-licence ddi: is not among what is fetched" in errors


@pytest.mark.parametrize(("name", "words"), [("ham1000", "did you mean 'ham10000'"), ("demo", "its images are drawn")])
def test_a_name_that_cannot_be_fetched(fetch, name, words):
    status, _, errors = fetch(name)
    assert (status, words in errors) == (2, True)


def test_a_quota_page_leaves_the_rest_and_says_what_to_do(fetch, site, data):
    other = drive_id("pad_ufes")
    site.publish(f"/drive/{DRIVE_ID}", QUOTA_PAGE.encode())
    site.publish(f"/drive/{other}", packed({"2000.csv": b"image,split,label\na.png,train,1\n", "imgs/a.png": b"x"}))
    names = ("ham10000", "pad_ufes")
    status, text, _ = fetch(*names, "--accept-licence", *names)
    assert status == 1
    assert "download quota of this file is used up" in text
    assert tree(data / "pad-ufes") == {"2000.csv": b"image,split,label\na.png,train,1\n", "images/a.png": b"x"}
    assert not (data / "HAM10000_clean").exists()


def test_files_come_side_by_side(fetch, site, data):
    names = ("ham10000", "bcn20000", "hiba")
    for name in names:
        site.publish(f"/drive/{drive_id(name)}", b"x")
    site.together = threading.Barrier(3, timeout=10)  # breaks if one waits for another
    text = fetch(*names, "--accept-licence", *names)[1]
    assert text.count("\ndownloaded ") == 3
    assert not site.together.broken


def test_a_truncated_archive_is_not_kept(fetch, site, data):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN)[:-100])
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 1
    assert "is cut off or damaged" in text
    assert not list((data / "downloads").rglob("HAM*.*"))
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    assert fetch("ham10000")[0] == 0


def test_an_archive_to_be_unpacked_by_hand_is_kept(fetch, site, data):
    site.publish(f"/drive/{DRIVE_ID}", b"7z\xbc\xaf\x27\x1c" + bytes(100))
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert (status, "is a .7z, which this program cannot unpack; unpack it by hand" in text) == (1, True)
    assert (data / "downloads/HAM10000_clean/HAM10000_clean.7z").exists()


@pytest.mark.parametrize("files", [CLEAN | {"../../evil.jpg": b"x"}, CLEAN | {"bomb.jpg": bytes(10_000_000)}])
def test_a_hostile_archive_writes_nothing(fetch, site, data, files, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 1000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    site.publish(f"/drive/{DRIVE_ID}", stream.getvalue())
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert (status, "refused" in text) == (1, True)
    assert not (data / "HAM10000_clean").exists()
    assert not list(data.parent.rglob("evil*"))


def test_an_archive_of_something_else_says_what_is_lacking(fetch, site, data):
    site.publish(f"/drive/{DRIVE_ID}", packed({"notes/readme.txt": b"x"}))
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 1
    assert "ham10000: not there: the table HAM10000_clean/ISIC2018_splits/HAM_clean.csv" in text


def test_images_that_the_archive_lacks_are_counted(fetch, site, data):
    lacking = {name: content for name, content in CLEAN.items() if not name.endswith(NAMES[3])}
    site.publish(f"/drive/{DRIVE_ID}", packed(lacking))
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 1
    assert "ham10000: not there: 1 of 10 images" in text


def test_a_file_that_changed_at_its_source_is_told_by_the_lock_file(fetch, site, data):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    assert fetch("ham10000", "--accept-licence", "ham10000")[0] == 0
    before = (data / "fetched.lock.json").read_text()
    assert "0.00 GB" in fetch("ham10000")[1]  # its size is known now
    for path in [*(data / "downloads").rglob("*.zip"), data / SPLIT_TABLE]:
        path.unlink()
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN | {"more.txt": b"x"}))
    status, text, _ = fetch("ham10000")
    assert status == 1
    assert "the publisher has changed the file, or one of the two is damaged" in text
    assert (data / "fetched.lock.json").read_text() == before


def test_a_killed_unpacking_is_continued_without_a_download(fetch, site, data):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    assert fetch("ham10000", "--accept-licence", "ham10000")[0] == 0
    asked = len(site.requests)
    victim, kept = (data / "HAM10000_clean/ISIC2018" / name for name in NAMES[:2])
    victim.rename(disk.temporary(victim))  # what a kill leaves: a file that has not got its name
    stamp = kept.stat().st_mtime_ns
    status, text, _ = fetch("ham10000")
    assert (status, len(site.requests)) == (0, asked)
    assert "1 file put in place" in text
    assert tree(data / "HAM10000_clean") == CLEAN
    assert kept.stat().st_mtime_ns == stamp


def test_full_disk_while_unpacking(fetch, site, data, monkeypatch):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    monkeypatch.setattr(disk, "free", lambda folder: 10_000 if folder.name == "HAM10000_clean" else 20)
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 1
    assert "unpacking needs" in text and "20 are free" in text
    assert not (data / "HAM10000_clean").exists()


# --from


LAYOUTS = {
    "as it should be": below("HAM10000_clean", CLEAN),
    "deep, other case": below("a/b/c/ham10000-clean", {name.upper(): content for name, content in CLEAN.items()}),
    "unopened archive": {"stuff/Copy of HAM (1).zip": packed(below("x", CLEAN))},
    "archives in an archive": {
        "dataverse_files.zip": packed(
            {"lists/splits.tgz": packed({"HAM_clean.csv": TABLE.encode()}, "w:gz"), "p_1.zip": packed(IMAGES)}
        )
    },
    "table and images apart": {"lists/HAM_clean.csv": TABLE.encode(), "y/imgs.tar": packed(below("z", IMAGES), "w")},
    "twice": below("one", CLEAN) | {"two.zip": packed(CLEAN), "three.tgz": packed(CLEAN, "w:gz")},
    "beside damaged archives": below("HAM", CLEAN) | {"broken.zip": b"PK\x03\x04", "other.7z": b"7z\xbc\xaf\x27\x1c"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_files_that_are_somewhere_are_put_in_place_and_stay_where_they_are(fetch, site, data, tmp_path, layout):
    source = write(tmp_path / "mine", layout)
    status, text, _ = fetch("ham10000", "--from", source)
    assert (status, site.requests) == (0, []), text
    assert tree(data / "HAM10000_clean") == CLEAN
    assert tree(source) == layout


def test_a_folder_that_holds_the_data_root_is_not_searched_twice(fetch, data, tmp_path):
    write(data / "downloads/x", {"HAM.zip": packed(CLEAN)})
    assert fetch("ham10000", "--from", tmp_path)[0] == 0
    assert tree(data / "HAM10000_clean") == CLEAN


TABLES = [name for name in manifests.load_profile("paper").datasets if manifests.load_dataset_manifest(name).table]
TABLES = [name for name in TABLES if not manifests.load_dataset_manifest(name).split_folders]


@pytest.mark.parametrize("name", TABLES)
def test_each_dataset_of_the_paper_ends_in_the_layout_of_its_manifest(fetch, data, tmp_path, name):
    card = manifests.load_dataset_manifest(name)
    images = [f"folder {i % 2}/case {i}{card.image_suffix}" for i in range(4)]
    column = card.draw.image if card.draw else "image"
    header = [column, "split", *filter(None, [card.label_column]), *card.groups.values()]
    rows = [[image, ("train", "val", "test")[i % 3], *["1"] * (len(header) - 2)] for i, image in enumerate(images)]
    files = {card.table: "\n".join(map(",".join, [header, *rows])).encode()}
    files |= {f"{card.image_root}/{image}": image.encode() for image in images}
    if card.masks:
        files |= {f"{card.masks.root}/{card.masks.name(image, 'train')}": image.encode() for image in images}
    moved = {f"Copy of it/{name.partition('/')[2]}": content for name, content in files.items()}
    source = write(tmp_path / "mine", {"archive.zip": packed(moved)})
    status, text, _ = fetch(name, "--from", source)
    assert status == 0, text
    home = card.table.partition("/")[0]
    assert below(home, tree(data / home)) == files


def test_archives_are_opened_to_a_limited_depth(fetch, data, tmp_path):
    content = packed(CLEAN)
    for depth, expected in enumerate((0, 0, 0, 1)):
        status = fetch("ham10000", "--from", write(tmp_path / f"{depth}", {"outer.zip": content}))[0]
        assert (depth, status) == (depth, expected)
        assert not list((data / "downloads").glob(".nested*"))
        shutil.rmtree(data)
        content = packed({"inner.zip": content})


def test_files_are_linked_where_the_disk_allows(fetch, data, tmp_path):
    source = write(tmp_path / "mine", CLEAN)
    fetch("ham10000", "--from", source)
    placed = data / "HAM10000_clean/ISIC2018" / NAMES[0]
    assert placed.samefile(source / "ISIC2018" / NAMES[0])


def test_files_are_copied_where_the_disk_does_not_link(fetch, data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = write(tmp_path / "mine", CLEAN)
    assert fetch("ham10000", "--from", source)[0] == 0
    placed = data / "HAM10000_clean/ISIC2018" / NAMES[0]
    assert placed.read_bytes() == IMAGES[NAMES[0]]
    assert not placed.samefile(source / "ISIC2018" / NAMES[0])


def test_two_images_of_one_name_and_other_content_are_not_guessed_between(fetch, data, tmp_path):
    source = write(tmp_path / "mine", {"HAM_clean.csv": TABLE.encode()} | below("a", IMAGES) | below("b", IMAGES))
    (source / "b" / NAMES[0]).write_bytes(IMAGES[NAMES[0]][::-1])
    status, text, _ = fetch("ham10000", "--from", source)
    assert status == 1
    assert "2 files of this name differ" in text and "name with --from only the folder" in text


def test_a_table_of_another_dataset_is_not_taken(fetch, data, tmp_path):
    source = write(tmp_path / "mine", CLEAN | {"ISIC2018_splits/HAM_clean.csv": b"id,diagnosis\n1,mel\n"})
    status, text, _ = fetch("ham10000", "--from", source)
    assert (status, "is not the table of ham10000" in text) == (1, True)


def test_images_whose_names_are_numbers_are_taken_only_from_a_folder_of_the_dataset(fetch, data, tmp_path):
    files = {"ddi_clean.csv": b"image,split,binary_label\n000001.png,train,1\n", "others/000001.png": b"x"}
    source = write(tmp_path / "mine", files)
    status, text, _ = fetch("ddi", "--from", source)
    assert (status, "1 of 1 images" in text) == (1, True)
    table = {"ddi_clean.csv": files["ddi_clean.csv"]}
    for i, layout in enumerate(
        (
            files | {"DDI/000001.png": b"ddi"},
            files | {"images/000001.png": b"ddi"},
            {"unnamed.zip": packed(table | {"pictures/000001.png": b"ddi"}), "others/000001.png": b"x"},
        )
    ):
        shutil.rmtree(data)
        source = write(tmp_path / f"source {i}", layout)
        assert fetch("ddi", "--from", source)[0] == 0, layout
        assert (data / "DDI/images/000001.png").read_bytes() == b"ddi"


def test_what_is_saved_by_hand_in_the_folder_of_downloads_is_found_without_a_flag(fetch, data):
    table = {"DDI/ddi_clean.csv": b"image,split,binary_label\n000001.png,train,1\n", "DDI/images/000001.png": b"x"}
    text = fetch("ddi")[1]
    folder = Path(re.search(r"save processed images and CSV in (\S+),", text)[1])
    write(folder, {"drive-download-001.zip": packed(table)})
    assert fetch("ddi")[0] == 0
    assert tree(data / "DDI") == {name.removeprefix("DDI/"): content for name, content in table.items()}


def test_weights_are_found_by_name_or_by_digest(fetch, tmp_path, monkeypatch):
    base = manifests.load_encoder_manifest("panderm_base")
    status, text, _ = fetch("panderm_base", "--from", write(tmp_path / "a", {"x/renamed.pth": b"weights"}))
    assert (status, "panderm_base: not there" in text) == (1, True)
    wrong = write(tmp_path / "b", {base.weights_file: b"other"})
    status, text, _ = fetch("panderm_base", "--from", wrong)
    assert (status, "it is another release or damaged" in text) == (1, True)
    assert (
        fetch("panderm_large", "--from", write(tmp_path / "c", {"panderm_ll_data6_checkpoint-499.pth": b"w"}))[0] == 0
    )
    assert (tmp_path / "W/panderm_ll_data6_checkpoint-499.pth").read_bytes() == b"w"
    lock = {
        "panderm_ll_data6_checkpoint-499.pth": {"url": "", "size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    }
    (tmp_path / "W/panderm_ll_data6_checkpoint-499.pth").unlink()
    assert (
        json.loads((tmp_path / "D/fetched.lock.json").read_text())["panderm_ll_data6_checkpoint-499.pth"]["size"] == 1
    )
    other = write(tmp_path / "d", {"w.zip": packed({"panderm_ll_data6_checkpoint-499.pth": b"v"})})
    assert ", in the lock file); it is another release" in fetch("panderm_large", "--from", other)[1]
    assert not (tmp_path / "W/panderm_ll_data6_checkpoint-499.pth").exists()
    (tmp_path / "D/fetched.lock.json").write_text(json.dumps(lock))
    assert fetch("panderm_large", "--from", tmp_path / "a")[0] == 0
    assert (tmp_path / "W/panderm_ll_data6_checkpoint-499.pth").read_bytes() == b"weights"


def test_split_folders_under_the_names_of_their_archives(fetch, data, tmp_path, monkeypatch):
    card = manifests.load_dataset_manifest("isic2018_task1")
    monkeypatch.setitem(card.split_sizes, "train", 2)
    monkeypatch.setitem(card.split_sizes, "val", 1)
    monkeypatch.setitem(card.split_sizes, "test", 1)
    number, source = 0, tmp_path / "mine"
    for split, size in (("Training", 2), ("Validation", 1), ("Test", 1)):
        names = [f"ISIC_{(number := number + 1):07}" for _ in range(size)]
        images = below(f"ISIC2018_Task1-2_{split}_Input", {f"{name}.jpg": name.encode() for name in names})
        masks = {f"{name}_segmentation.png": name.encode() for name in names}
        write(source, {f"ISIC2018_Task1-2_{split}_Input.zip": packed(images | {"LICENSE.txt": b""})})
        write(source / f"ISIC2018_Task1_{split}_GroundTruth", masks)
    status, text, _ = fetch("isic2018_task1", "--from", source)
    assert status == 0, text
    assert sorted(tree(data / "ISIC2018"))[:3] == [
        "Test_Data/ISIC_0000004.jpg",
        "Test_GroundTruth/ISIC_0000004_segmentation.png",
        "Training_Data/ISIC_0000001.jpg",
    ]
    assert len(tree(data / "ISIC2018")) == 8


# Repositories


def test_dataverse_gives_digests_and_the_original_of_a_table(fetch, site, data):
    """The images from Drive, the table and the masks from Dataverse, whose digests are checked."""
    metadata = b'"lesion_id","image_id","dx"\n' + b"".join(
        f'"H{i}","{n[:-4]}","nv"\n'.encode() for i, n in enumerate(NAMES)
    )
    masks = packed({f"HAM10000_segmentations_lesion_tschandl/{n[:-4]}_segmentation.png": n.encode() for n in NAMES})
    files = [
        {"dataFile": {"id": 1, "filename": "HAM10000_metadata.tab", "filesize": 9, "md5": "0" * 32,
                      "originalFileFormat": "text/csv", "originalFileName": "HAM10000_metadata.csv"}},
        {"dataFile": {"id": 2, "filename": "HAM10000_segmentations_lesion_tschandl.zip", "filesize": len(masks),
                      "md5": hashlib.md5(masks).hexdigest()}},
        {"dataFile": {"id": 3, "filename": "HAM10000_images_part_1.zip", "filesize": 5, "md5": "1" * 32}},
    ]  # fmt: skip
    path = "/dataverse/api/datasets/:persistentId/"
    site.publish(path, {"status": "OK", "data": {"latestVersion": {"files": files}}})
    site.publish("/dataverse/api/access/datafile/1?format=original", metadata)
    site.publish("/dataverse/api/access/datafile/2", masks)
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    status, text, _ = fetch("ham10000_masks", "--accept-licence", "ham10000_masks")
    assert status == 0, text
    assert f"{path}?persistentId=doi:10.7910/DVN/DBW86T" in [address for address, _ in site.requests]
    assert "/dataverse/api/access/datafile/3" not in [address for address, _ in site.requests]
    got = tree(data / "HAM10000_clean")
    assert got["HAM10000_metadata.csv"] == metadata
    assert len(got) == 21
    assert {*locked(data)} == {
        "HAM10000_clean/HAM10000_metadata.csv",
        "downloads/HAM10000_clean/HAM10000_clean.zip",
        "downloads/HAM10000_clean/HAM10000_metadata.csv",
        "downloads/HAM10000_clean/HAM10000_segmentations_lesion_tschandl.zip",
    }


def test_a_file_with_another_digest_than_the_publisher_s_is_fetched_twice_and_refused(fetch, site, tmp_path):
    sha = hashlib.sha256(b"right").hexdigest()
    repository = "timm/vit_large_patch14_dinov2.lvd142m"
    files = [{"type": "file", "path": "model.safetensors", "size": 5, "lfs": {"oid": sha, "size": 5}}]
    site.publish(f"/hugging_face/api/models/{repository}/tree/main", files)
    path = f"/hugging_face/{repository}/resolve/main/model.safetensors"
    site.publish(path, b"wrong")
    status, text, _ = fetch("dinov2_large", "--accept-licence", "dinov2_large")
    assert status == 1
    assert f"its sha256 is {hashlib.sha256(b'wrong').hexdigest()}, the publisher says {sha}, twice" in text
    assert not list(tmp_path.rglob("*.safetensors*"))
    site.troubles[path] = [(200, b"wrong")]
    site.publish(path, b"right")
    assert fetch("dinov2_large")[0] == 0
    assert (tmp_path / "W/vit_large_patch14_dinov2.lvd142m.safetensors").read_bytes() == b"right"


def test_the_lists_of_zenodo_figshare_and_mendeley(site):
    files = [{"key": "a.zip", "size": 3, "checksum": "md5:ab", "links": {"self": "https://z/a.zip"}}]
    site.publish("/zenodo/records/11101337", {"files": files})
    figshare = [{"name": "a.zip", "size": 3, "download_url": "https://f/1", "computed_md5": "AB", "supplied_md5": ""}]
    site.publish("/figshare/articles/24140028/files", figshare)
    mendeley = [
        {"filename": "a.zip", "size": 3, "content_details": {"download_url": "https://m/1", "sha256_hash": "ab"}}
    ]
    site.publish("/mendeley/datasets/zr7vgbcyr2/files?folder_id=root&version=1", mendeley)
    for doi, url, digest in (
        ("10.5281/zenodo.11101337", "https://z/a.zip", "md5:ab"),
        ("10.6084/m9.figshare.24140028", "https://f/1", "md5:ab"),
        ("10.17632/zr7vgbcyr2.1", "https://m/1", "sha256:ab"),
    ):
        page = f"https://doi.org/{doi}"
        assert repositories.list_remote(page, "x") == [repositories.Remote("a.zip", url, page, 3, digest)]
    plain = "https://example.org/files/a%20b.zip?x=1"
    assert repositories.list_remote(plain, "x") == [repositories.Remote("a b.zip", plain, plain)]


def test_a_list_that_is_another_or_lacks_a_file_says_so(site):
    page = "https://doi.org/10.5281/zenodo.1"
    site.publish("/zenodo/records/1", {"files": [{"key": "b.zip", "links": {"self": "https://z/b.zip"}}]})
    with pytest.raises(FetchError, match=r"has no file a; it has b.zip: correct `files`"):
        repositories.list_remote(page, "x", ["a"])
    site.publish("/zenodo/records/1", {"metadata": {}})
    with pytest.raises(FetchError, match="list of files has another form: KeyError"):
        repositories.list_remote(page, "x")
    site.publish("/zenodo/records/1", b"busy")
    with pytest.raises(FetchError, match=r"list of files is not JSON; open https://doi.org"):
        repositories.list_remote(page, "x")


def test_a_name_that_a_site_chooses_stays_in_the_folder_of_downloads(fetch, site, data):
    files = [{"dataFile": {"id": 1, "filename": "HAM10000_metadata.csv"}}]
    files += [{"dataFile": {"id": 2, "filename": "../../HAM10000_segmentations_lesion_tschandl.zip"}}]
    site.publish("/dataverse/api/datasets/:persistentId/", {"data": {"latestVersion": {"files": files}}})
    site.publish("/dataverse/api/access/datafile/1", b"x")
    site.publish("/dataverse/api/access/datafile/2", packed(CLEAN))
    fetch("ham10000_masks", "--accept-licence", "ham10000_masks")
    assert not [path for path in data.parent.rglob("*tschandl*") if data / "downloads" not in path.parents]


def test_derm7pt_s_two_datasets_share_one_archive(fetch, data, tmp_path):
    files = {
        f"atlas-{kind}-all.csv": f"image,split,binary_label\n{kind}/a.jpg,train,1\n".encode()
        for kind in ("clinical", "dermato")
    }
    files |= {f"images/{kind}/a.jpg": kind.encode() for kind in ("clinical", "dermato")}
    source = write(tmp_path / "mine", {"Derm7pt.zip": packed(files)})
    status, text, _ = fetch("derm7pt_clinical", "derm7pt_dermoscopic", "--from", source)
    assert status == 0, text
    assert tree(data / "Derm7pt") == files


def test_ctrl_c_leaves_a_partial_file_that_the_next_call_continues(fetch, site, data, tmp_path):
    content = packed(CLEAN | {"big.bin": os.urandom(3_000_000)})
    site.publish(f"/drive/{DRIVE_ID}", content)
    site.troubles[f"/drive/{DRIVE_ID}"] = [("stall", 1_000_000)]
    code = (
        "import sys, run_all; from panderm_utils.fetching import drive\n"
        f"drive.DOWNLOAD = '{site.url}/uc?export=download&id={{id}}'\n"
        "sys.exit(run_all.main(sys.argv[1:]))"
    )
    arguments = ["--fetch", "ham10000", "--accept-licence", "ham10000", "--data-root", str(data)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    part = data / "downloads/HAM10000_clean/HAM10000_clean.part"
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 900_000):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, "interrupted" in errors) == (130, True)
    at = part.stat().st_size
    assert fetch("ham10000")[0] == 0
    assert site.requests[-1][1] == f"bytes={at}-"
    assert not list(data.rglob("*.part*"))


def test_two_calls_at_once_do_not_mix(fetch, data):
    from filelock import FileLock

    (data / "downloads").mkdir(parents=True)
    with FileLock(data / "downloads/.lock"):
        status, _, errors = fetch("ham10000")
    assert (status, "another --fetch is at work there" in errors) == (2, True)


def test_nothing_heavy_is_loaded():
    code = "import sys, panderm_utils.fetching.steps; print({'torch', 'pandas', 'numpy', 'timm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_flags_that_need_fetch(capsys):
    for flags in (["--from", "x"], ["--accept-licence", "ddi"]):
        with pytest.raises(SystemExit):
            run_all.main(flags)
        assert "go with --fetch" in capsys.readouterr().err
