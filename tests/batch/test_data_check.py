"""`--check-data`: what a run would say of real files, in one table, before any run."""

import io

import pandas as pd
import pytest
from PIL import Image

import run_all
from panderm_utils import manifests

HIBA = manifests.load_dataset_manifest("hiba")  # its manifest has no sizes
DDI = manifests.load_dataset_manifest("ddi")  # 427, 83, 137


def put(card, root, rows=10, **changes) -> pd.DataFrame:
    """Writes images and a CSV; `changes` are columns that replace or join the usual ones."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 150, 130)).save(buffer, "JPEG")
    (root / card.image_root).mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(rows)]})
    table = table.assign(split=[("train", "train", "train", "test", "test")[i % 5] for i in range(rows)])
    table = table.assign(**{card.label_column: [i % 2 for i in range(rows)]}).assign(**changes)
    for name in table["image"]:
        (root / card.image_root / name).write_bytes(buffer.getvalue())
    table.to_csv(root / card.csv, index=False)
    return table


def check(root, capsys, *arguments) -> tuple[int, dict[str, dict[str, str]], str]:
    """Returns the exit status, the table as dataset -> column -> cell, and all that was printed."""
    status = run_all.main(["--data-root", str(root), "--check-data", *arguments])
    printed = capsys.readouterr()
    lines = printed.out.split("\n\n")[0].splitlines()
    starts = [i for i, mark in enumerate(lines[0]) if mark != " " and (i == 0 or lines[0][i - 2 : i] == "  ")]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    return status, {cell[0]: dict(zip(cells[0], cell, strict=True)) for cell in cells[1:]}, printed.out + printed.err


def test_sound_data_are_ok(tmp_path, capsys):
    put(HIBA, tmp_path, lesion_id=range(10), patient_id=range(10))
    status, table, text = check(tmp_path, capsys)
    row = table["hiba"]
    assert (status, row["result"], row["rows"], row["train/val/test"], row["manifest"]) == (
        0,
        "ok",
        "10",
        "6/0/4",
        "unknown",
    )
    assert row["unreadable"] == "not checked"
    assert {row[name] for name in ("columns", "labels", "missing images", "duplicates", "leakage", "other")} == {"0"}
    assert "Not there: bcn20000, ddi," in text


def test_each_kind_of_trouble_has_its_column_and_its_line(tmp_path, capsys):
    names = ["0.jpg", "0.jpg", *[f"{i}.jpg" for i in range(2, 10)]]
    splits = ["train"] * 6 + ["test"] * 3 + ["x"]
    labels = [0, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    put(HIBA, tmp_path, image=names, split=splits, binary_label=labels, lesion_id=[1] * 10, patient_id=range(10))
    status, table, text = check(tmp_path, capsys, "hiba")
    row = table["hiba"]
    assert (status, row["result"], row["rows"]) == (0, "warnings", "9")  # a run would go on, and say so
    assert (row["duplicates"], row["leakage"], row["other"]) == ("1", "1 lesion", "1")
    assert f"hiba: warning: 1 x repeated image: {tmp_path / HIBA.csv}:2: the file 0.jpg is in rows 2, 3" in text
    assert "split 'x' is not one of train, val, test" in text
    assert "1 lesion ids are in more than one split" in text


def test_missing_and_unreadable_images_are_errors(tmp_path, capsys):
    put(HIBA, tmp_path, lesion_id=range(10), patient_id=range(10))
    for i in (1, 2):
        (tmp_path / HIBA.image_root / f"{i}.jpg").unlink()
    status, table, text = check(tmp_path, capsys, "hiba")
    assert (status, table["hiba"]["missing images"], table["hiba"]["rows"]) == (1, "2", "10")
    assert "hiba: 2 x missing file\n" in text
    for i in (1, 2):
        (tmp_path / HIBA.image_root / f"{i}.jpg").write_bytes(b"no image")
    status, table, _ = check(tmp_path, capsys, "hiba")
    assert (status, table["hiba"]["result"], table["hiba"]["unreadable"]) == (0, "ok", "not checked")
    status, table, text = check(tmp_path, capsys, "hiba", "--pixels")
    assert (status, table["hiba"]["result"], table["hiba"]["unreadable"]) == (1, "errors", "2")
    assert "checking pixels: 100%" in text
    assert "[1.jpg]" in text


def test_a_missing_label_column_is_an_error(tmp_path, capsys):
    table = put(HIBA, tmp_path)
    table.rename(columns={"binary_label": "diagnosis"}).to_csv(tmp_path / HIBA.csv, index=False)
    (tmp_path / HIBA.image_root / "1.jpg").unlink()
    status, table, text = check(tmp_path, capsys, "hiba")
    assert (status, table["hiba"]["columns"], table["hiba"]["missing images"]) == (1, "1", "1")
    assert "hiba: 1 x missing column, 1 x missing file\n" in text


def test_other_sizes_than_the_manifests_are_trouble(tmp_path, capsys):
    put(DDI, tmp_path)
    status, table, text = check(tmp_path, capsys)
    row = table["ddi"]
    assert (status, row["result"], row["train/val/test"], row["manifest"]) == (1, "other sizes", "6/0/4", "427/83/137")
    assert "ddi: 6 train rows, 427 in the published data" in text


def test_what_is_not_there_is_trouble_only_if_named(tmp_path, capsys):
    put(HIBA, tmp_path / "deeper")
    status, table, text = check(tmp_path, capsys, "hiba")
    assert (status, table["hiba"]) == (1, {**dict.fromkeys(table["hiba"], ""), "dataset": "hiba", "result": "missing"})
    assert f"  --data-root {tmp_path / 'deeper'}\n" in text
    assert run_all.main(["--check-data", "--data-root", str(tmp_path / "nothing")]) == 1
    assert "no dataset is in" in capsys.readouterr().err
    assert run_all.main(["--check-data", "hib"]) == 2
    assert "did you mean 'hiba'" in capsys.readouterr().err


def test_a_csv_that_is_a_folder_is_an_error(tmp_path, capsys):
    for place in (HIBA.csv, HIBA.image_root):
        (tmp_path / place).mkdir(parents=True)
    status, table, text = check(tmp_path, capsys)
    assert (status, table["hiba"]["result"]) == (1, "errors")
    assert "there is no CSV" in text


def test_pixels_go_with_check_data_or_a_number_of_gb(capsys, monkeypatch):
    monkeypatch.setenv("PANDERM_PIXELS", "1")  # restored afterwards
    with pytest.raises(SystemExit):
        run_all.main(["--pixels"])
    assert "number of GB" in capsys.readouterr().err
    for wrong in ("-3", "much"):
        assert run_all.main(["--plan", f"--pixels={wrong}"]) == 2
        assert "write a number of GB" in capsys.readouterr().err
    assert run_all.main(["--plan", "--pixels", "2.5"]) == 0
    assert "decoded images at most 2.5 GB" in capsys.readouterr().out
