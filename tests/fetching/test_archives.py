"""Archives that cannot be trusted: nothing in one decides where a file is written, nor how much."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest

from panderm_utils.fetching import archives
from panderm_utils.fetching.archives import archive_suffix, list_members, read_members
from panderm_utils.fetching.errors import FetchError

FILES = {"top/table.csv": b"image,split\n", "top/images/a.jpg": b"\xff\xd8one", "top/images/b.jpg": b"\xff\xd8two"}


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def names(archive):
    return [str(member.path) for member in list_members(archive)]


def contents(archive, *wanted):
    found = {}
    read_members(archive, set(wanted), lambda name, stream: found.update({name: stream.read()}))
    return found


@pytest.mark.parametrize(
    ("name", "mode", "suffix"),
    [
        ("a.zip", None, ".zip"),
        ("a.tar", "w", ".tar"),
        ("a.tgz", "w:gz", ".tar.gz"),
        ("a.tar.bz2", "w:bz2", ".tar.bz2"),
        ("download", "w:xz", ".tar.xz"),
    ],
)
def test_each_kind_is_known_by_its_content_and_read(tmp_path, name, mode, suffix):
    path = make_tar(tmp_path / name, FILES, mode) if mode else make_zip(tmp_path / name, FILES)
    assert archive_suffix(path) == suffix
    assert names(path) == list(FILES)
    assert [member.size for member in list_members(path)] == [len(content) for content in FILES.values()]
    assert contents(path, "top/images/b.jpg", "top/table.csv") == {
        name: FILES[name] for name in ("top/images/b.jpg", "top/table.csv")
    }


@pytest.mark.parametrize("name", ["../evil.jpg", "top/../../evil.jpg", "/etc/evil.jpg", "C:\\evil.jpg", "..\\evil.jpg"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_with_a_name_that_leaves_it_is_refused_whole(tmp_path, make, name):
    path = make(tmp_path / "archive", {"good.jpg": b"x", name: b"x"})
    with pytest.raises(FetchError, match=r"refused: it has the name .*evil.jpg, which leaves the folder"):
        list_members(path)


def test_folders_written_with_backslashes_are_folders(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"images\\a.jpg": b"x"})
    assert list_members(path)[0].path == PurePosixPath("images/a.jpg")


def test_what_macos_adds_is_left_out(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"__MACOSX/images/._a.jpg": b"x", "images/._a.jpg": b"x", "images/a.jpg": b"x"})
    assert names(path) == ["images/a.jpg"]


def test_links_and_devices_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"images/{kind.decode()}.jpg")
            entry.type, entry.linkname = kind, "/etc/passwd"
            file.addfile(entry)
    assert list_members(tmp_path / "a.tar") == []
    assert contents(tmp_path / "a.tar", "images/2.jpg") == {}
    link = zipfile.ZipInfo("images/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert names(make_zip(tmp_path / "a.zip", {link: "/etc/passwd"})) == []


def test_a_bomb_is_refused_by_the_size_that_it_declares(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 1000)
    path = make_zip(tmp_path / "a.zip", {"a.jpg": bytes(1_000_000)})
    assert path.stat().st_size < 2000
    with pytest.raises(FetchError, match=r"refused: its [\d,]+ bytes unpack to 1,000,000 bytes or more, in 1 files"):
        list_members(path)
    path = make_tar(tmp_path / "a.tgz", {"a.jpg": bytes(5_000_000)}, "w:gz")
    with pytest.raises(FetchError, match="refused"):
        list_members(path)


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_a_bomb_is_refused_by_what_comes_out_whatever_it_declares(tmp_path, monkeypatch, opener):
    """The zeros after the end of a tar, which no member declares, and a name that is as long as a file."""
    monkeypatch.setattr(archives, "ALLOWANCE", 100_000)
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 20_000_000
    with opener(tmp_path / "archive", "wb") as file:
        file.write(long_name.tobuf())
        file.write(b"a" * long_name.size)
    assert (tmp_path / "archive").stat().st_size < 50_000
    with pytest.raises(FetchError, match=r"refused: its [\d,]+ bytes unpack to over [\d,]+ bytes"):
        list_members(tmp_path / "archive")


def test_a_zip_that_lies_about_its_sizes_is_damaged(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jpg": bytes(100_000)})
    raw = path.read_bytes().replace((100_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(raw)
    assert list_members(path)[0].size == 1000
    with pytest.raises(FetchError, match="damaged"):
        contents(path, "a.jpg")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(FetchError, match="refused"):
        list_members(make_zip(tmp_path / "a.zip", FILES))


@pytest.mark.parametrize("mode", [None, "w", "w:gz", "w:xz"])
def test_an_archive_that_is_cut_off_says_so(tmp_path, mode):
    files = {name: bytes(range(256)) * 40 for name in FILES}
    path = make_tar(tmp_path / "a", files, mode) if mode else make_zip(tmp_path / "a", files)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FetchError, match=r"is cut off or damaged .*remove it and repeat the command"):
        list_members(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c1234", r"is a .7z, which this program cannot unpack; unpack it by hand"),
        (b"Rar!\x1a\x07", r"is a .rar"),
        (b"something", "a file of an unknown kind"),
    ],
)
def test_what_cannot_be_unpacked_here_is_left_to_the_user(tmp_path, content, words):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FetchError, match=words):
        list_members(tmp_path / "a")


def test_an_encrypted_zip_and_an_unusual_one(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jpg": b"x" * 100}, zipfile.ZIP_LZMA)
    with pytest.raises(FetchError, match=r"compressed in another way.*unpack it by hand"):
        list_members(path)
    path = make_zip(tmp_path / "b.zip", {"a.jpg": b"x" * 100})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)
    with pytest.raises(FetchError, match="is encrypted; unpack it by hand"):
        list_members(path)
