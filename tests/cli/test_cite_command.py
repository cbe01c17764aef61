"""`--cite`: valid, sorted BibTeX of what records used, and a sentence where there is none."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import run_all
from panderm_utils.manifests import reading as manifests
from tests.manifests.test_cards import parse_bibtex
from tests.small_record import write_small_record

ROOT = Path(__file__).parents[2]


def cite(capsys, root, *arguments):
    status = run_all.main(["--cite", "--output-root", str(root), *arguments])
    return status, *capsys.readouterr()


def leave(root, name, profile="paper", **more):
    write_small_record(root / profile / "records" / name, profile=profile, **more)


def test_each_publication_is_cited_once_sorted_by_key(capsys, tmp_path):
    leave(tmp_path, "a", dataset="pad_ufes", encoder="panderm_large")
    leave(tmp_path, "b", dataset="ham10000", encoder="dinov2_large")
    leave(tmp_path, "c", dataset="ham10000_masks", targets={"hiba": {}})
    leave(tmp_path, "d", "demo", dataset="patch16")
    leave(tmp_path, "e", dataset="isic2018_task1")
    status, text, error = cite(capsys, tmp_path, "--profile", "paper")
    assert (status, error) == (0, "")
    assert list(parse_bibtex(text)) == [
        "codella2019",
        "pacheco2020",
        "riccilara2023",
        "tschandl2018",
        "tschandl2020",
        "yan2025",
    ]
    assert "% the paper: yan2025\n" in text
    assert "% ham10000_masks: tschandl2020, tschandl2018\n" in text
    assert "% isic2018_task1: codella2019; the paper cites Milton, arXiv:1901.10802, instead\n" in text
    assert "% dinov2_large: no reference on file; https://huggingface.co/timm/" in text
    assert "drawn" not in text
    assert cite(capsys, tmp_path, "--profile", "paper")[1] == text


def test_your_data_and_datasets_that_are_gone_are_comments(capsys, tmp_path, monkeypatch):
    mine = dataclasses.replace(manifests.load_dataset_manifest("ddi"), own=True, references=(), citation="own@data")
    load = manifests.load_dataset_manifest
    monkeypatch.setattr(
        "panderm_utils.manifests.load_dataset_manifest", lambda name: mine if name == "ddi" else load(name)
    )
    leave(tmp_path, "a", "own", dataset="ddi")
    leave(tmp_path, "b", "own", dataset="gone")
    status, text, _ = cite(capsys, tmp_path, "--profile", "own")
    assert status == 0
    assert list(parse_bibtex(text)) == ["yan2025"]
    assert "% ddi: own(at)data, without a reference; write `references` in data_manifests/datasets/ddi.yaml\n" in text
    assert "% gone: its manifest is gone" in text


def test_without_a_record_it_says_what_to_do_and_a_damaged_one_is_left_out(capsys, tmp_path):
    status, text, error = cite(capsys, tmp_path)
    assert (status, text) == (1, "")
    assert f"{tmp_path / 'demo'} has no record yet" in error
    assert "--profile demo makes some" in error
    leave(tmp_path, "a", "demo")
    leave(tmp_path, "b", "demo")
    (tmp_path / "demo/records/b/record.json").write_text("{")
    status, text, error = cite(capsys, tmp_path)
    assert status == 1
    assert "left out" in error
    assert "% What 1 record used" in text


@pytest.mark.parametrize("heavy", ["torch", "pandas"])
def test_it_loads_nothing_heavy(tmp_path, heavy):
    leave(tmp_path, "a", "demo")
    code = f"import sys, run_all; run_all.main(sys.argv[1:]); sys.exit({heavy!r} in sys.modules)"
    command = [sys.executable, "-c", code, "--cite", "--output-root", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
