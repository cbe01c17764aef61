"""The evaluation transform against torchvision's own, and the dataset of image files in real worker processes."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import panderm_utils  # noqa: F401  (prepares torchvision)
from panderm_utils.data import transforms as images
from panderm_utils.data.image_files import ImageError, ImageFolder, oddity, open_image

SIZES = [
    (600, 450),
    (450, 600),
    (1024, 1024),
    (1, 1),
    (1, 9),
    (256, 256),
    (224, 224),
    (255, 300),
    (301, 256),
    (256, 301),
]
SIZES += [(3000, 40), (40, 3000), (460, 243), (427, 859), (8, 603), (223, 225), (257, 255), (1024, 768), (100, 900)]
SIZES += [tuple(map(int, pair)) for pair in np.random.default_rng(1).integers(2, 700, (60, 2))]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_evaluation_transform_is_bit_equal_to_torchvision(size):
    from torchvision import transforms

    published = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.228, 0.224, 0.225)),
        ]
    )
    image = noise(*size)
    result = images.evaluation_transform()(image)
    assert result.shape == (3, 224, 224)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, published(image))


@pytest.mark.parametrize("size", [(30_000, 10), (10, 30_001), (5000, 1), (7, 30_007)])
def test_a_strip_that_would_fill_the_memory_is_read_from_its_centre(size):
    """Against PIL's own resizing of just the part that evaluation looks at, which needs no memory."""
    image, (width, height) = noise(*size), images.resized_size(size, 256)
    left, top, x, y = round((width - 224) / 2), round((height - 224) / 2), size[0] / width, size[1] / height
    box = (left * x, top * y, (left + 224) * x, (top + 224) * y)
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box)).astype(int)
    result = np.asarray(images.resize_and_crop(image)).astype(int)
    assert np.abs(result - expected).max() <= 2  # levels
    assert expected.std() > 20


def write_files(folder, count: int = 12) -> list:
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        noise(90 + i, 80, seed=i).save(path)
    return paths


def test_image_files_in_order_whatever_the_workers(tmp_path):
    paths = write_files(tmp_path)
    dataset = pickle.loads(pickle.dumps(images.ImageFiles(paths)))
    transform = images.evaluation_transform()
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    for workers in (0, 2):
        batches = list(DataLoader(dataset, batch_size=5, num_workers=workers))
        assert torch.equal(torch.cat([index for index, _ in batches]), torch.arange(12))
        assert torch.equal(torch.cat([tensor for _, tensor in batches]), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_names_row_file_and_reason(tmp_path, workers):
    paths = write_files(tmp_path, 3)
    paths[1].write_bytes(paths[1].read_bytes()[:400])
    loader = DataLoader(images.ImageFiles(paths, rows=[2, 17, 18]), batch_size=3, num_workers=workers)
    batches = iter(loader)
    with pytest.raises(ImageError, match=r"(?s)CSV row 17: .*1\.png: .*truncated"):
        next(batches)
    if workers:
        batches._shutdown_workers()  # left to the garbage collector, it takes five seconds


def test_rows_must_match_paths(tmp_path):
    with pytest.raises(ValueError, match="1 rows for 2 paths"):
        images.ImageFiles([tmp_path / "a", tmp_path / "b"], rows=[1])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "YCbCr"])
def test_eight_bit_modes_open_as_pil_converts_them(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    noise(40, 30).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), expected)
    assert bool(oddity(path)) == (mode != "RGB")


def test_palette_with_alpha_keeps_its_colours_without_a_warning(tmp_path):
    image = noise(20, 20).quantize(8)
    image.save(tmp_path / "p.png", transparency=bytes([0, 100, 255, 255, 255, 255, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_image(tmp_path / "p.png")
    assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
    opened = np.asarray(open_image(tmp_path / f"grey.{suffix}"))
    assert np.array_equal(opened, np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_exif_orientation_is_ignored_and_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(60, 30).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (60, 30)
    assert "EXIF orientation 6" in oddity(tmp_path / "turned.jpg")


def test_what_cannot_be_opened_says_why(tmp_path, monkeypatch):
    good = tmp_path / "good.jpg"
    noise(80, 80).save(good)
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    cases = {
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"<!DOCTYPE html><html>", "web page"),
        "cut.jpg": (good.read_bytes()[:-900], "truncated"),
        "text.jpg": (b"hello, world", "not a readable image"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="floating-point"):
        open_image(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "none.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # 80 x 80 is beyond it, and within PIL's own factor of two
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="more than the limit of 5,000"):
        open_image(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        open_image(good)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "bmp", "webp"])
def test_damaged_bytes_raise_image_errors_only(tmp_path, suffix):
    """Whatever the damage, a worker must name the file: 150 random corruptions of each format."""
    rng = np.random.default_rng(0)
    noise(24, 24).save(tmp_path / f"a.{suffix}")
    content = np.frombuffer((tmp_path / f"a.{suffix}").read_bytes(), dtype=np.uint8)
    path, failed = tmp_path / f"b.{suffix}", 0
    for _ in range(150):
        damaged = content.copy()
        where = rng.integers(0, min(len(content), rng.choice([40, 400, 10**6])), 6)
        damaged[where] = rng.integers(0, 256, 6)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)].tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert open_image(path).mode == "RGB"
            except ImageError as error:
                failed += 1
                assert str(path) in str(error)
    assert failed > 20


def test_folder_finds_case_suffix_and_refuses_to_leave(tmp_path):
    root = tmp_path / "root"
    (root / "NEL").mkdir(parents=True)
    outside = tmp_path / "outside.jpg"
    for path in (root / "NEL" / "A1.JPG", root / "b.jpg", root / "two.jpg", root / "TWO.jpg", outside):
        path.write_bytes(b"x")
    (root / "link.jpg").symlink_to(outside)
    (root / "inner.jpg").symlink_to(root / "b.jpg")
    (root / "away").symlink_to(tmp_path)
    folder = ImageFolder(root)
    assert folder.find("b.jpg") == ("b.jpg", "")
    assert folder.find("./b.jpg") == ("b.jpg", "")
    assert folder.find("inner.jpg") == ("inner.jpg", "")
    assert folder.find("nel\\a1.jpg")[0] == "NEL/A1.JPG"
    assert folder.find("nel/a1", ".jpg")[0] == "NEL/A1.JPG"
    for name, reason in {
        "../outside.jpg": "leaves",
        "NEL/../../outside.jpg": "leaves",
        "..\\outside.jpg": "leaves",
        str(outside): "absolute",
        "C:\\x.jpg": "absolute",
        "\\\\server\\x.jpg": "absolute",
        "link.jpg": "symbolic link",
        "away/outside.jpg": "symbolic link",
        "Two.jpg": "differ only in case",
        "b.png": r"there is b.jpg",
        "none/x.jpg": "missing",
        "b.jpg/x.jpg": "missing",
        "": "empty",
        "a\0b": "NUL",
    }.items():
        found, remark = folder.find(name)
        assert found is None, name
        assert reason in remark, (name, remark)
