"""Lists the images below a folder, and says what is left out."""

import os

import numpy as np
import pytest
from PIL import Image

from panderm_utils.data.csv_tables import DataError
from panderm_utils.data.image_folder import list_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a/z.jpg", "a/deep/y.jpeg", "._b.png", "notes.txt", "phone.heic"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(("txt", "heic")):
            path.write_text("no image")
        else:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return tmp_path / "images"


def test_images_are_listed_in_sorted_order_also_in_subfolders(folder):
    found = list_images(folder)
    assert found.names == ("a/deep/y.jpeg", "a/z.jpg", "b.PNG")
    assert found.paths == [str(folder / name) for name in found.names]
    assert found.unreadable == {}
    assert found.others == {".txt": 1, ".heic": 1}


def test_what_cannot_be_opened_is_listed_with_its_reason(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    found = list_images(folder)
    assert len(found.names) == 3
    assert found.unreadable == {"gone.jpg": "broken link (No such file or directory)", "pipe.jpg": "not a file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_listed_too(folder):
    (folder / "b.PNG").chmod(0)
    (folder / "a/deep").chmod(0)
    found = list_images(folder)
    (folder / "a/deep").chmod(0o700)
    assert found.names == ("a/z.jpg",)
    assert found.unreadable == {"a/deep/": "cannot be listed (Permission denied)", "b.PNG": "no permission to read it"}


def test_a_folder_without_images_or_none_at_all_is_an_error(folder):
    with pytest.raises(DataError, match="no such folder"):
        list_images(folder / "missing")
    for path in list_images(folder).paths:
        os.remove(path)  # noqa: PTH107
    with pytest.raises(DataError, match=r"found: 1 \.txt, 1 \.heic"):
        list_images(folder)
