"""`--fetch` without upstream's archives: tables made of original releases, and images of the ISIC Archive."""

import csv
import hashlib
import io
import json
import re

import pytest

from panderm_utils import data, disk, manifests
from panderm_utils.fetching import repositories
from panderm_utils.fetching.errors import FetchError
from tests.fetching.site_on_loopback import QUOTA_PAGE
from tests.fetching.test_fetch import CLEAN, DRIVE_ID, HAM, below, drive_id, packed, tree, write

LIST = "combined_metadata_corrected.csv"
LIST_PATH = re.sub(r".*?\.com/", "/github/", next(a.url for a in HAM.access if a.url.endswith(LIST))).replace(
    "/blob", ""
)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "D"


def clean_list() -> list[dict[str, str]]:
    """The rows of the list of HAM10000's clean split: as many of each split and class as the manifest says."""
    rows, splits = [], {split: [*counts] for split, counts in HAM.class_counts.items()}
    splits["train"][2] += 1  # the row that upstream's CSV has under another split
    for split, counts in splits.items():
        for name, count in zip(HAM.class_names, counts, strict=True):
            rows += [
                {"lesion_id": f"HAM_{len(rows) + i}", "dx": name, "age": "50.0", "split": split} for i in range(count)
            ]
    rows = [{"image_id": f"ISIC_{24306 + i:07}", **row} for i, row in enumerate(rows)]
    quirk = next(row for row in rows if (row["split"], row["dx"]) == ("train", "bkl"))
    twin = next((row for row in rows if row["image_id"] == "ISIC_0025033"), {})
    quirk["image_id"], twin["image_id"] = "ISIC_0025033", quirk["image_id"]
    return rows


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def images_of(rows) -> dict[str, bytes]:
    return {f"{row['image_id']}.jpg": row["image_id"].encode() for row in rows}


@pytest.fixture
def small(monkeypatch):
    """HAM10000 with a few images of each class in place of 10,015, so that the tests are fast."""
    for split, counts in {"train": (3, 2, 4, 1, 2, 6, 2), "val": (1,) * 7, "test": (1, 2, 1, 1, 1, 3, 1)}.items():
        monkeypatch.setitem(HAM.class_counts, split, counts)
        monkeypatch.setitem(HAM.split_sizes, split, sum(counts))


@pytest.fixture
def ham(small):
    rows = clean_list()
    return as_csv(rows), images_of(rows)


def publish_ham(site, ham):
    table, images = ham
    halves = [dict(list(images.items())[start::2]) for start in (0, 1)]
    names = [f"HAM10000_images_part_{i}.zip" for i in (1, 2)]
    files = [{"dataFile": {"id": i, "filename": name}} for i, name in enumerate(names)]
    site.publish("/dataverse/api/datasets/:persistentId/", {"data": {"latestVersion": {"files": files}}})
    for i, half in enumerate(halves):
        site.publish(f"/dataverse/api/access/datafile/{i}", packed(half))
    site.publish(LIST_PATH, table)


def lock(root):
    return json.loads((root / "fetched.lock.json").read_text())


def test_ham10000_is_put_together_from_its_release_when_drive_refuses(fetch, site, root, ham):
    publish_ham(site, ham)
    site.publish(f"/drive/{DRIVE_ID}", QUOTA_PAGE.encode())
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 0, text
    assert "download quota of this file is used up" in text
    assert f"ham10000: its table was made of {LIST}, in its release; the columns binary_label" in text
    dataset = data.load_dataset(HAM, root)
    assert data.shortfall(dataset) == ""
    assert [kind for kind in dataset.problems["kind"] if kind == "unknown split"] == ["unknown split"]  # as upstream's
    used = [row for row in csv.DictReader(io.StringIO(ham[0].decode())) if row["image_id"] != "ISIC_0025033"]
    expected = [(f"{row['image_id']}.jpg", row["split"], HAM.class_names.index(row["dx"])) for row in used]
    assert list(dataset.table[["image", "split", "label"]].itertuples(index=False, name=None)) == expected
    assert dataset.table["lesion_id"].tolist() == [row["lesion_id"] for row in used]
    images = {name: image for name, image in ham[1].items() if name != "ISIC_0025033.jpg"}  # in none of the splits
    assert tree(root / "HAM10000_clean/ISIC2018") == images
    assert lock(root)[HAM.csv]["url"] == f"made of {LIST}"
    assert not [path for path, _ in site.requests if "isic" in path]


def test_upstream_s_archive_comes_first_and_nothing_else_is_asked_for(fetch, site, root):
    site.publish(f"/drive/{DRIVE_ID}", packed(CLEAN))
    assert fetch("ham10000", "--accept-licence", "ham10000")[0] == 0
    assert len(site.requests) == 1


def test_upstream_s_table_comes_before_one_made_of_the_release(fetch, root, ham):
    source = write(root.parent / "mine", below("HAM10000_clean", CLEAN) | {LIST: ham[0]})
    assert fetch("ham10000", "--from", source)[0] == 0
    assert (root / HAM.csv).read_bytes() == CLEAN["ISIC2018_splits/HAM_clean.csv"]
    assert lock(root)[HAM.csv]["url"] == HAM.access[0].url


def test_images_that_one_release_lacks_come_from_the_next(fetch, site, root, ham):
    publish_ham(site, ham)
    site.files.pop("/dataverse/api/access/datafile/1")  # the second half of the images
    site.collections["212"] = {name[:-4]: image for name, image in ham[1].items()}
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert status == 0, text
    assert "so from the original release, original images, in the ISIC Archive" in text
    assert data.load_dataset(HAM, root).files.keys() | {"ISIC_0025033.jpg"} == ham[1].keys()


@pytest.mark.parametrize("change", ["another split", "a row less", "another class"])
def test_a_release_with_other_counts_is_refused(fetch, root, small, change):
    rows = clean_list()
    row = next(row for row in rows if row["split"] == "test")
    if change == "another split":
        row["split"] = "train"
    elif change == "another class":
        row["dx"] = "nv"
    else:
        rows.remove(row)
    status, text, _ = fetch("ham10000", "--from", write(root.parent / "mine", {LIST: as_csv(rows)}))
    assert status == 1
    assert "another release or a part of one, and is not used" in text
    assert not (root / "HAM10000_clean").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"image_id,dx\nISIC_1,nv\n", "lacks the column split; it has image_id, dx"),
        (b"image_id,dx,split\nISIC_1,wart,train\n", "'wart' in its release is none of akiec, bcc"),
        (b"", "lacks the column image_id, dx, split; it has no rows"),
    ],
)
def test_a_list_of_another_form_says_what_is_wrong(fetch, root, table, words):
    status, text, _ = fetch("ham10000", "--from", write(root.parent / "mine", {LIST: table}))
    assert (status, words in text) == (1, True), text


def test_without_the_list_no_image_is_downloaded(fetch, site, ham):
    publish_ham(site, (as_csv(clean_list()[1:]), ham[1]))
    site.collections["212"] = {name[:-4]: image for name, image in ham[1].items()}
    status, text, _ = fetch("ham10000", "--accept-licence", "ham10000")
    assert (status, "another release or a part of one" in text) == (1, True)
    assert not [path for path, _ in site.requests if "dataverse" in path or "isic" in path]


def test_another_table_than_the_recorded_one_is_not_made(fetch, root, ham):
    source = write(root.parent / "mine", {LIST: ham[0]} | ham[1])
    assert fetch("ham10000", "--from", source)[0] == 0
    assert "there" in fetch("ham10000")[1]
    (root / HAM.csv).unlink()
    (source / LIST).write_bytes(ham[0].replace(b"50.0", b"55.0"))
    status, text, _ = fetch("ham10000", "--from", source)
    assert (status, f"and is made of {LIST}, but {HAM.csv} was" in text) == (1, True)


PH2 = """|| Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Streaks || Colors ||
{rows}

Legends:
Clinical Diagnosis: 0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma.
"""


def test_ph2_from_its_list_and_its_folder_for_each_image(fetch, root):
    names = [f"IMD{i:03}" for i in range(200)]
    codes = ["0", "1"] * 80 + ["2"] * 40
    rows = "\n".join(f"||  {n} ||     || {c} ||  0 |  T |  A ||  4 ||" for n, c in zip(names, codes, strict=True))
    files = {f"PH2 Dataset images/{n}/{n}_Dermoscopic_Image/{n}.bmp": n.encode() for n in names}
    files |= {f"PH2 Dataset images/{n}/{n}_lesion/{n}_lesion.bmp": b"mask" for n in names}
    files |= {"PH2_dataset.txt": PH2.format(rows=rows).encode("latin-1")}
    source = write(root.parent / "mine", {"PH2Dataset.zip": packed(below("PH2Dataset", files))})
    status, text, _ = fetch("ph2", "--from", source)
    assert status == 0, text
    dataset = data.load_dataset(manifests.load_dataset_manifest("ph2"), root)
    assert data.class_counts(dataset)["test"].tolist() == [160, 40]
    assert dataset.table["image"].tolist() == [f"{name}.bmp" for name in names]
    assert tree(root / "PH2/images") == {f"{name}.bmp": name.encode() for name in names}


def med_node(naevi=100, melanomas=70) -> dict[str, bytes]:
    sizes = {"naevus": naevi, "melanoma": melanomas}
    return {f"{folder}/{i}.jpg": f"{folder}{i}".encode() for folder, size in sizes.items() for i in range(size)}


@pytest.mark.parametrize("packing", ["folders", "archive"])
def test_med_node_from_a_folder_for_each_class(fetch, root, packing):
    files = below("complete_mednode_dataset", med_node())
    mine = {"x.zip": packed(files)} if packing == "archive" else files
    others = dict.fromkeys(med_node(naevi=3), b"another image")
    mine |= below("others", others) | {"elsewhere/7.jpg": b"not this one"}
    status, text, _ = fetch("med_node", "--from", write(root.parent / "mine", mine))
    assert status == 0, text
    dataset = data.load_dataset(manifests.load_dataset_manifest("med_node"), root)
    assert data.class_counts(dataset)["test"].tolist() == [100, 70]
    assert tree(root / "MED-NODE/images") == med_node()
    assert lock(root)["MED-NODE/med_node.csv"]["url"] == "made of the folders naevus, melanoma"


def test_a_part_of_med_node_is_refused(fetch, root):
    status, text, _ = fetch("med_node", "--from", write(root.parent / "mine", below("x", med_node(naevi=99))))
    assert (status, "169 test images, not 170" in text) == (1, True), text


def derm7pt(drop: int = 0) -> dict[str, bytes]:
    """A release of 1,011 cases: 575 nevi, 45 seborrheic keratoses, 252 melanomas and 139 others."""
    kinds = ["clark nevus"] * 575 + ["seborrheic keratosis"] * 45 + ["melanoma (in situ)"] * 252
    kinds = (kinds + ["basal cell carcinoma"] * 139)[drop:]
    rows = [{"case_num": str(i), "diagnosis": kind, "derm": f"NEL/Nel{i:04}.jpg"} for i, kind in enumerate(kinds)]
    files = {"meta/meta.csv": as_csv(rows)} | {f"images/{row['derm']}": row["derm"].encode() for row in rows}
    for k, name in enumerate(("train", "valid", "test")):
        numbers = [{"": str(i), "indexes": str(n)} for i, n in enumerate(range(k, len(rows), 3))]
        files[f"meta/{name}_indexes.csv"] = as_csv(numbers)
    return below("release_v0", files)


def cut_off(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return files | {name: files[name].rpartition(b",")[0]}


def test_derm7pt_from_its_files_of_row_numbers(fetch, root):
    source = write(root.parent / "mine", {"release_v0.zip": packed(derm7pt())})
    status, text, _ = fetch("derm7pt_dermoscopic", "derm7pt_clinical", "--from", source)
    assert status == 1
    assert "its splits are those of the release" in text and "whether upstream's are the same is unknown" in text
    assert "derm7pt_clinical: not there" in text and "839 of the 872 cases" in text
    dataset = data.load_dataset(manifests.load_dataset_manifest("derm7pt_dermoscopic"), root)
    assert data.class_counts(dataset).sum(axis=1).tolist() == [620, 252]
    assert dataset.table["split"].tolist()[:4] == ["train", "val", "test", "train"]
    assert not (root / "Derm7pt/images/NEL/Nel0900.jpg").exists()  # a carcinoma


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda files: derm7pt(drop=1), "(619, 252) images of other, mel, not (620, 252)"),
        (lambda files: {n: c for n, c in files.items() if "valid" not in n}, "valid_indexes.csv: is not beside"),
        (lambda files: cut_off(files, "release_v0/meta/meta.csv"), "damaged: row 1011 lacks the column derm"),
        (lambda files: files | {"release_v0/meta/test_indexes.csv": b"indexes\n0\n"}, "'0' is no number of a row"),
    ],
    ids=["a case less", "no file of val", "a list cut off", "a row in two splits"],
)  # fmt: skip
def test_a_release_of_derm7pt_that_is_not_whole_is_refused(fetch, root, changes, words):
    status, text, _ = fetch("derm7pt_dermoscopic", "--from", write(root.parent / "mine", changes(derm7pt())))
    assert (status, words in text) == (1, True), text
    assert not (root / "Derm7pt").exists()


PAPER = [manifests.load_dataset_manifest(name) for name in manifests.load_profile("paper").datasets]


@pytest.mark.parametrize("card", PAPER, ids=lambda card: card.name)
def test_each_dataset_says_whether_its_release_is_enough(fetch, card):
    text = fetch(card.name)[1]
    word = "lacks" if card.release and card.release.lacks else "enough"
    assert re.search(rf"^{card.name} .*  {word}", text, re.MULTILINE)
    assert ("alone it cannot be put together: " in text) == (word == "lacks")


# A release that lacks the list


def test_who_has_the_list_gets_the_images_of_the_release(fetch, site, root):
    table = b"image,split,label\nPAT_1.png,train,1\nPAT_2.png,test,2\n"
    archive = packed({"imgs_part_1/PAT_1.png": b"1", "imgs_part_1/PAT_2.png": b"2"})
    content = {"download_url": site.publish("/mendeley/1", archive), "sha256_hash": hashlib.sha256(archive).hexdigest()}
    site.publish(
        "/mendeley/datasets/zr7vgbcyr2/files?folder_id=root&version=1",
        [{"filename": "imgs_part_1.zip", "size": len(archive), "content_details": content}],
    )
    status, text, _ = fetch("pad_ufes", "--accept-licence", "pad_ufes")  # Drive has no such file here
    assert status == 1
    assert "which of its images are in which split is known from upstream's 2000.csv alone" in text
    assert not [path for path, _ in site.requests if "mendeley" in path]
    folder = re.search(r"if you have 2000.csv, put it in (\S+):", text)[1]
    (root / "downloads/pad-ufes/2000.csv").write_bytes(table)
    assert folder == str(root / "downloads/pad-ufes")
    status, text, _ = fetch("pad_ufes")
    assert status == 0, text
    assert tree(root / "pad-ufes") == {"2000.csv": table, "images/PAT_1.png": b"1", "images/PAT_2.png": b"2"}


# The ISIC Archive


ISIC = {f"ISIC_{i:07}": f"image {i}".encode() for i in range(7)}
HIBA_TABLE = "image,split,binary_label\n" + "".join(
    f"{name}.jpg,{split},0\n" for name, split in zip(ISIC, ["train", "test"] * 4, strict=False)
)


@pytest.fixture
def hiba(site, root):
    """A list of seven images, which are in collection 251; Drive has nothing."""
    write(root / "downloads/HIBA", {"hiba.csv": HIBA_TABLE.encode()})
    site.collections |= {"251": ISIC, "175": {}}
    site.page_size = 3
    return lambda fetch: fetch("hiba", "--accept-licence", "hiba")


def test_a_collection_comes_page_by_page_and_is_recorded_as_one(fetch, site, root, hiba):
    status, text, _ = hiba(fetch)
    assert status == 0, text
    assert tree(root / "HIBA/images") == {f"{name}.jpg": image for name, image in ISIC.items()}
    assert sum("/images/search/" in path for path, _ in site.requests) == 3
    lines = "".join(f"{hashlib.sha256(image).hexdigest()}  {name}.jpg\n" for name, image in ISIC.items())
    entry = lock(root)["downloads/HIBA/isic_collection_251"]
    assert entry["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert entry["size"] == sum(map(len, ISIC.values()))
    assert entry["url"] == "https://api.isic-archive.com/collections/251/"
    assert not list(root.rglob("*.part*"))


def test_an_address_that_expired_is_asked_for_again(fetch, site, root, hiba, monkeypatch):
    listed = repositories.LISTINGS[r"https://api\.isic-archive\.com/collections/(\d+)/$"]

    def slow(*arguments):
        yield from listed(*arguments)
        site.signature += 1

    monkeypatch.setitem(repositories.LISTINGS, r"https://api\.isic-archive\.com/collections/(\d+)/$", slow)
    status, text, _ = hiba(fetch)
    assert status == 0, text
    assert sum(path == "/isic/images/ISIC_0000003/" for path, _ in site.requests) == 1


def test_a_collection_that_lacks_an_image_is_not_used_until_it_is_whole(fetch, site, root, hiba):
    site.troubles["/s3/ISIC_0000004.jpg"] = [(404, b"gone")] * 2
    status, text, _ = hiba(fetch)
    assert status == 1
    assert "1 of its images are missing, the first because of" in text
    assert not (root / "HIBA/images").exists()
    assert "downloads/HIBA/isic_collection_251" not in lock(root)
    asked = len(site.requests)
    assert fetch("hiba")[0] == 0
    assert sum("/s3/" in path for path, _ in site.requests[asked:]) == 1


def test_what_came_of_a_collection_can_be_used_all_the_same(fetch, site, root, hiba):
    site.troubles["/s3/ISIC_0000004.jpg"] = [(404, b"gone")] * 4
    text = hiba(fetch)[1]
    status, text, _ = fetch("hiba", "--from", re.search(r"do without them: --from (\S+)", text)[1])
    assert status == 1 and "1 of 7 images" in text
    assert len(tree(root / "HIBA/images")) == 6


def test_a_collection_that_has_changed_is_told_by_the_lock_file(fetch, site, root, hiba):
    assert hiba(fetch)[0] == 0
    for folder in ("HIBA/images", "downloads/HIBA/isic_collection_251"):
        for path in (root / folder).iterdir():
            path.unlink()
        (root / folder).rmdir()
    site.collections["251"] = ISIC | {"ISIC_0000000": b"another image"}
    status, text, _ = fetch("hiba")
    assert (status, "the publisher has changed the file, or one of the two is damaged" in text) == (1, True)
    assert not (root / "HIBA/images").exists()


def test_a_collection_needs_room_for_all_of_it(fetch, site, root, hiba, monkeypatch):
    monkeypatch.setattr(disk, "free", lambda folder: 30)
    status, text, _ = hiba(fetch)
    assert status == 1
    assert "collections/251/ needs" in text and "30 are free" in text
    assert not [path for path, _ in site.requests if "/s3/" in path]


@pytest.mark.parametrize("following", ["https://elsewhere.example/images/", None])
def test_a_list_that_leads_elsewhere_or_in_circles_ends(site, following):
    site.collections["251"] = ISIC
    address = "/isic/images/search/?collections=251&limit=100"
    page = {"count": 7, "results": [], "next": following or site.url + address}
    site.answer_isic = lambda handler, *_: site.send(handler, 200, json.dumps(page).encode())
    with pytest.raises(FetchError, match="which is another site or was read before"):
        repositories.list_remote("https://api.isic-archive.com/collections/251/", "x")


def test_every_archive_of_drive_is_still_the_first_way():
    for card in PAPER:
        if any(access.fetch == "instead" for access in card.access):
            assert drive_id(card.name)
