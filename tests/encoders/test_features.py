"""Features on real JPEG files, in real worker processes, against plain timm; and a cache that is lied to and killed."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from timm.models.beit import Beit
from torchvision import transforms

from panderm_utils.data import dataset as data
from panderm_utils.data.image_files import ImageError
from panderm_utils.data.loading import LoadingError
from panderm_utils.data.transforms import EvaluationTransform
from panderm_utils.encoders import feature_cache, features
from panderm_utils.encoders.feature_cache import FeatureCacheWarning
from panderm_utils.encoders.features import FeatureError, extract_features, extract_files
from panderm_utils.encoders.loading import Encoder, load_encoder
from panderm_utils.manifests import EncoderManifest, load_encoder_manifest

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, DEPTH, HEADS = 48, 2, 3
RANDOM = EncoderManifest(
    name="toy",
    title="toy",
    architecture="beit",
    layout="none",
    licence="MIT",
    width=WIDTH,
    depth=DEPTH,
    heads=HEADS,
    num_features=WIDTH,
)
COUNT, SMALL = 19, 8  # images, and the images of a shard in most tests: shards of 8, 8 and 3


def draw(path: Path, seed: int, length: int | None = None) -> Path:
    """Writes a JPEG; `length` pads it with bytes that decoders ignore."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80 + seed % 7, 60), Image.Resampling.BICUBIC).save(path, quality=90)
    if length is not None:
        content = path.read_bytes()
        assert len(content) <= length
        path.write_bytes(content + bytes(length - len(content)))
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    return [str(draw(tmp_path / "images" / f"{i}.jpg", i)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(RANDOM, device="cpu")


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(features, "SHARD", SMALL)
    monkeypatch.setattr(feature_cache, "TICK", 0)  # else the files just drawn are too fresh to be recognised by time


@pytest.fixture
def batches(encoder: Encoder):
    """The sizes of the batches that the model is given."""
    sizes: list[int] = []
    hook = encoder.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    yield sizes
    hook.remove()


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The image files that are read in this process."""
    seen: list[str] = []

    def read(path: str, original=feature_cache.read_identified):
        seen.append(path)
        return original(path)

    monkeypatch.setattr(features, "read_identified", read)
    monkeypatch.setattr(feature_cache, "read_identified", read)
    return seen


def extract(encoder: Encoder, paths: list[str], cache: Path | None = None, **options) -> features.Features:
    return extract_files(encoder, paths, cache=cache, **{"num_workers": 0, **options})


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("features/*/*.shard"), key=lambda path: path.stat().st_mtime_ns)


def plain_features(encoder: Encoder, paths: list[str]) -> np.ndarray:
    """As timm and torchvision alone compute them, image by image, attention written out, float32."""
    model = Beit(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, init_values=1.0, num_classes=0, use_fc_norm=False)
    model.load_state_dict(encoder.model.state_dict(), strict=True)
    for block in model.eval().blocks:
        block.attn.fused_attn = False
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    transform = transforms.Compose(steps)
    with torch.no_grad():
        images = [transform(Image.open(path).convert("RGB"))[None] for path in paths]
        return torch.cat([model.forward_features(image)[:, 0] for image in images]).numpy()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2), (7, 1), (1000, None)])
def test_features_equal_plain_timm_whatever_batch_workers_and_order(encoder, paths, small_shards, batch_size, workers):
    order = np.random.default_rng(batch_size).permutation(COUNT)
    shuffled = [paths[i] for i in order]
    found = extract_files(encoder, shuffled, batch_size=batch_size, num_workers=workers)
    assert found.x.dtype == np.float32 and found.x.shape == (COUNT, WIDTH)
    expected = plain_features(encoder, shuffled)
    assert np.abs(found.x - expected).max() < 1e-5
    assert np.abs(expected[1:] - expected[:-1]).max(axis=1).min() > 1e-3  # no two images look alike to it
    assert found.image_ids.tolist() == shuffled and (found.computed, found.from_cache) == (COUNT, 0)


def test_no_batch_is_padded_and_none_crosses_a_shard(encoder, paths, small_shards, batches):
    extract(encoder, paths, batch_size=5)
    assert batches == [5, 3, 5, 3, 3]
    batches.clear()
    extract(encoder, paths, batch_size=1000, num_workers=2)
    assert batches == [8, 8, 3]


def test_a_cpu_takes_at_most_its_own_batch(encoder, paths, batches):
    extract(encoder, paths * 3, batch_size=1000)
    assert batches == [48, 9]


def test_a_second_extraction_reads_no_image_and_computes_nothing(
    encoder, paths, small_shards, tmp_path, batches, reads
):
    first = extract(encoder, paths, tmp_path)
    assert reads == paths and sum(batches) == COUNT
    reads.clear(), batches.clear()
    second = extract(load_encoder(RANDOM, device="cpu"), paths, tmp_path, batch_size=3, num_workers=2)
    assert (second.computed, second.from_cache) == (0, COUNT) and not reads and not batches
    assert np.array_equal(second.x, first.x)
    assert second.describe() == first.describe() and "batches of 48" in first.describe()["computed_by"][0]
    json.dumps(first.describe())
    about = json.loads(next(tmp_path.glob("features/*/about.json")).read_text())
    assert about["weights_sha256"] == encoder.digest and about["precision"] == "fp32"


def replace_content(path: str) -> None:
    draw(Path(path), 100)


def replace_content_of_equal_size_and_time(path: str) -> None:
    before = Path(path).stat()
    draw(Path(path), 101, length=before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Path(path).stat().st_size == before.st_size and Path(path).stat().st_mtime_ns == before.st_mtime_ns


def replace_file_by_another(path: str) -> None:
    before = Path(path).stat()
    new = draw(Path(path).with_name("new.jpg"), 102, length=before.st_size)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


@pytest.mark.parametrize("change", [replace_content, replace_content_of_equal_size_and_time, replace_file_by_another])
def test_a_changed_image_invalidates_its_shard_only(encoder, paths, small_shards, tmp_path, change, batches):
    draw(Path(paths[9]), 9, length=4000)
    extract(encoder, paths, tmp_path)
    batches.clear()
    time.sleep(0.02)  # beyond the tick of the file system's clock, as TICK is 0 here
    change(paths[9])
    found = extract(encoder, paths, tmp_path)
    assert batches == [8] and (found.computed, found.from_cache) == (8, COUNT - 8)
    assert np.array_equal(found.x, extract(encoder, paths).x)
    assert extract(encoder, paths, tmp_path).computed == 0


def test_a_change_within_one_tick_of_a_coarse_clock_is_seen(encoder, paths, tmp_path, monkeypatch):
    def coarse(stat: os.stat_result) -> tuple[int, int, int, int]:
        tick = 2_000_000_000
        return stat.st_size, stat.st_mtime_ns // tick * tick, stat.st_ctime_ns // tick * tick, 7

    monkeypatch.setattr(feature_cache, "_stamp", coarse)
    draw(Path(paths[0]), 0, length=4000)
    extract(encoder, paths[:2], tmp_path)
    draw(Path(paths[0]), 103, length=4000)
    found = extract(encoder, paths[:2], tmp_path)
    assert found.computed == 2 and np.array_equal(found.x, extract(encoder, paths[:2]).x)


def test_touched_and_moved_images_stay_valid(encoder, paths, small_shards, tmp_path, reads):
    names = [Path(path).name for path in paths]
    first = extract(encoder, paths, tmp_path, names=names)
    reads.clear()
    os.utime(paths[3])
    assert extract(encoder, paths, tmp_path, names=names).computed == 0 and reads == [paths[3]]
    reads.clear()
    assert extract(encoder, paths, tmp_path, names=names).computed == 0 and not reads
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    shutil.rmtree(tmp_path / "images")
    moved = [str(tmp_path / "moved" / name) for name in names]
    found = extract(encoder, moved, tmp_path, names=names)
    assert found.computed == 0 and sorted(reads) == sorted(moved) and np.array_equal(found.x, first.x)


def test_other_weights_heads_transform_or_precision_never_share(encoder, paths, tmp_path):
    paths = paths[:3]
    released = load_encoder_manifest("panderm_base")
    released = replace(released, width=WIDTH, depth=DEPTH, heads=HEADS, num_features=WIDTH, sha256=None)
    tensors = encoder.model.state_dict()
    torch.save({**tensors, "norm.bias": tensors["norm.bias"] + 1}, tmp_path / "other.pth")
    torch.save(tensors, tmp_path / "same.pth")
    rescaled = load_encoder(RANDOM, device="cpu")
    rescaled.transform = EvaluationTransform(std=(0.229, 0.224, 0.225))
    variants = [
        encoder,
        load_encoder(released, weights=tmp_path / "other.pth", device="cpu"),
        load_encoder(released, weights=tmp_path / "same.pth", device="cpu"),
        load_encoder(replace(RANDOM, heads=4), device="cpu"),  # the very weights of `encoder`, read otherwise
        load_encoder(replace(released, heads=4), weights=tmp_path / "same.pth", device="cpu"),
        load_encoder(RANDOM, device="cpu", precision="bf16"),
        rescaled,
    ]
    assert variants[3].digest == encoder.digest and variants[4].digest == variants[2].digest
    for variant in variants:
        found = extract(variant, paths, tmp_path / "cache")
        assert found.computed == 3
        assert np.array_equal(found.x, extract(variant, paths).x)
    assert all(extract(variant, paths, tmp_path / "cache").computed == 0 for variant in variants)
    assert np.abs(extract(variants[3], paths).x - extract(encoder, paths).x).max() > 1e-3


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    at = content.index(b"x.npy") + 200  # among the features
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"\0" * 900, lambda _: b"pickle"])
def test_a_damaged_shard_is_told_and_computed_anew(encoder, paths, small_shards, tmp_path, damage):
    first = extract(encoder, paths, tmp_path)
    shard = shards(tmp_path)[1]
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.warns(FeatureCacheWarning, match=f"{shard.name}: it is damaged; its features are computed again"):
        found = extract(encoder, paths, tmp_path)
    assert found.computed == 8 and np.array_equal(found.x, first.x)
    assert extract(encoder, paths, tmp_path).computed == 0


def test_shards_put_in_each_others_place_are_not_trusted(encoder, paths, small_shards, tmp_path):
    first = extract(encoder, paths, tmp_path)
    one, two, _ = shards(tmp_path)
    shutil.copy(one, two)
    found = extract(encoder, paths, tmp_path)
    assert found.computed == 8 and np.array_equal(found.x, first.x)
    other = load_encoder(RANDOM, device="cpu", precision="bf16")
    expected = extract(other, paths, tmp_path)
    strange = next(path for path in shards(tmp_path) if path.name == one.name and path.parent != one.parent)
    shutil.copy(one, strange)
    with pytest.warns(FeatureCacheWarning, match="another encoder"):
        assert np.array_equal(extract(other, paths, tmp_path).x, expected.x)


SCRIPT = """
import sys, time
import panderm_utils, torch
from panderm_utils.encoders import features
from panderm_utils.encoders import feature_cache
from panderm_utils.encoders.loading import load_encoder
from tests.encoders.test_features import RANDOM
features.SHARD, feature_cache.TICK = 4, 0
torch.set_num_threads(1)
cache, paths = sys.argv[1], sys.argv[2:]
encoder = load_encoder(RANDOM, device="cpu")
encoder.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
print("ready", flush=True)
found = features.extract_files(encoder, paths, cache=cache, num_workers=1)
print(found.computed, found.from_cache, found.describe()["features_sha256"], flush=True)
"""


def extract_slowly(encoder: Encoder, paths: list[str], cache: Path) -> None:
    encoder.model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    extract(encoder, paths, cache, num_workers=1)


def test_a_killed_extraction_goes_on_bit_equal(encoder, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 4)
    monkeypatch.setattr(feature_cache, "TICK", 0)
    child = multiprocessing.get_context("fork").Process(target=extract_slowly, args=(encoder, paths, tmp_path))
    child.start()
    workers = []
    while len(shards(tmp_path)) < 2:
        assert child.is_alive()
        workers = psutil.Process(child.pid).children() or workers
        time.sleep(0.01)
    child.kill()
    child.join()
    kept = len(shards(tmp_path))
    assert 2 <= kept < 5
    found = extract(encoder, paths, tmp_path)
    assert (found.computed, found.from_cache) == (COUNT - 4 * kept, 4 * kept)
    assert np.array_equal(found.x, extract(encoder, paths).x)
    assert workers
    psutil.wait_procs(workers, timeout=60)
    assert not any(process.is_running() for process in workers)  # they end themselves, seconds after


def test_two_processes_at_once_both_end_right(encoder, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 4)
    monkeypatch.setattr(feature_cache, "TICK", 0)
    command, root = [sys.executable, "-c", SCRIPT, str(tmp_path), *paths], Path(__file__).resolve().parents[2]
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout.readline() == "ready\n"
    found = extract(encoder, paths, tmp_path)
    said = child.communicate()[0].split()
    assert child.returncode == 0
    expected = extract(encoder, paths)
    assert np.array_equal(found.x, expected.x) and said[2] == expected.describe()["features_sha256"]
    assert len(shards(tmp_path)) == 5 and not list(tmp_path.glob("features/*/.*"))
    assert extract(encoder, paths, tmp_path).computed == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_keeps_finished_shards_and_no_process(
    encoder, paths, small_shards, tmp_path, workers, monkeypatch
):
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            for child in multiprocessing.active_children():  # Jupyter's stop button signals the whole process group
                os.kill(child.pid, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    hook = encoder.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:  # and with it the traceback, as a notebook does
        extract(encoder, paths * 3, tmp_path, num_workers=workers)
    hook.remove()
    assert kept.tb is not None and not multiprocessing.active_children()
    assert extract(encoder, paths * 3, tmp_path).from_cache == 16


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "reason"), [(b"<html>", "web page"), (None, "does not exist"), (-200, "truncated")]
)
def test_a_failing_image_names_row_file_and_reason(encoder, paths, small_shards, tmp_path, workers, content, reason):
    good = Path(paths[13]).read_bytes()
    if content is None:
        Path(paths[13]).unlink()
    else:
        Path(paths[13]).write_bytes(good[:content] if isinstance(content, int) else content)
    rows = [2 + 3 * i for i in range(COUNT)]
    with pytest.raises(ImageError) as caught:
        extract(encoder, paths, tmp_path, rows=rows, num_workers=workers)
    message = str(caught.value)
    assert message.startswith(f"CSV row {rows[13]}: {paths[13]}: ") and reason in message
    assert "\n" not in message and not multiprocessing.active_children()
    Path(paths[13]).write_bytes(good)
    found = extract(encoder, paths, tmp_path)
    assert found.from_cache == 8 and np.array_equal(found.x, extract(encoder, paths).x)


def test_unreadable_images_are_left_out_and_listed_and_the_cache_remembers_them(
    encoder, paths, small_shards, tmp_path, batches, workers=2
):
    whole = extract(encoder, paths)
    Path(paths[2]).write_bytes(b"<html>")
    Path(paths[17]).write_bytes(b"")
    kept = [i for i in range(COUNT) if i not in (2, 17)]
    batches.clear()
    first = extract(encoder, paths, tmp_path, num_workers=workers, skip_unreadable=True)
    assert sum(batches) == COUNT
    again = extract(encoder, paths, tmp_path, num_workers=workers, skip_unreadable=True)
    assert sum(batches) == COUNT
    for found in (first, again):
        np.testing.assert_allclose(found.x, whole.x[kept], atol=1e-5)
        assert found.image_ids.tolist() == [paths[i] for i in kept]
        assert list(found.unreadable) == [paths[2], paths[17]]
        assert found.unreadable[paths[17]] == "the file is empty; download it again"
    with pytest.raises(ImageError, match=r"image 2 \(from 0\).*web page"):  # the cache does not make it readable
        extract(encoder, paths, tmp_path)
    draw(Path(paths[2]), 2)
    Path(paths[17]).unlink()
    mended = extract(encoder, paths, tmp_path, skip_unreadable=True)
    assert mended.unreadable == {paths[17]: "the file does not exist"}
    np.testing.assert_allclose(mended.x, np.delete(whole.x, 17, axis=0), atol=1e-5)


def test_a_killed_worker_is_told_with_a_remedy(encoder, paths):
    def kill(*_):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    killed = pytest.raises(LoadingError, match=r"killed.*num_workers=0")
    with encoder.model.register_forward_pre_hook(kill), killed:
        extract(encoder, paths * 4, num_workers=1)
    assert not multiprocessing.active_children()


def test_a_cache_that_cannot_be_written_is_a_warning(encoder, paths, small_shards, tmp_path):
    expected = extract(encoder, paths).x
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(FeatureCacheWarning, match="cannot be stored there") as caught:
        found = extract(encoder, paths, tmp_path / "file")
    assert len([warning for warning in caught if warning.category is FeatureCacheWarning]) == 1
    assert np.array_equal(found.x, expected)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, limits[1]))  # as a full disk, in the middle of a file
    try:
        with pytest.warns(FeatureCacheWarning, match="cannot be stored there"):
            found = extract(encoder, paths, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(found.x, expected)
    assert not shards(tmp_path / "full") and not list(tmp_path.glob("full/features/*/.*"))
    assert extract(encoder, paths, tmp_path / "full").computed == COUNT


def test_half_written_files_of_the_dead_are_swept(encoder, paths, small_shards, tmp_path):
    extract(encoder, paths, tmp_path)
    folder = shards(tmp_path)[0].parent
    old, new = folder / ".a.shard.1.b.new", folder / ".c.shard.2.d.new"
    old.write_bytes(b"x"), new.write_bytes(b"x")
    os.utime(old, (0, 0))
    extract(encoder, paths, tmp_path)
    assert not old.exists() and new.exists()


def test_memory_does_not_grow_with_the_images(encoder, paths):
    """152 images of 0.6 MB each are 92 MB; what is held at any time is a batch or two."""
    alive, resident, given = [], [], []

    def look(_, images):
        given.append(weakref.ref(images[0]))
        alive.append(sum(ref() is not None for ref in given))
        resident.append(psutil.Process().memory_info().rss / 1e6)

    hook = encoder.model.register_forward_pre_hook(look)
    for workers in (0, 2):
        gc.collect()
        resident.clear()
        extract(encoder, paths * 8, num_workers=workers)
        assert max(alive) <= 2
        assert max(resident) - max(resident[:3]) < 40
    hook.remove()


def study(root: Path, names: list[str], labels: list[int]) -> data.Dataset:
    table = pd.DataFrame({"row": range(2, 2 + len(names)), "image": names, "split": "train", "label": labels})
    table.loc[table.index[-1], "split"] = "test"
    files = {name: f"{name}.jpg" for name in names}
    return data.Dataset(None, table, root, pd.DataFrame(), root / "toy.csv", "", files)


def test_a_split_keeps_the_order_of_the_table_and_take_picks_by_name(encoder, paths, tmp_path):
    names, labels = ["4", "007", "2", "4", "11"], [1, 0, 2, 1, 0]
    draw(tmp_path / "images" / "007.jpg", 7)
    toy = study(tmp_path / "images", names, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = extract_features(encoder, toy, "train", cache=tmp_path, batch_size=2)
    assert train.image_ids.tolist() == names[:4] and train.y.tolist() == labels[:4] and train.y.dtype == np.int64
    expected = plain_features(encoder, [str(tmp_path / "images" / f"{name}.jpg") for name in names[:4]])
    assert np.abs(train.x - expected).max() < 1e-5
    taken = train.take(pd.Series(["2", "4", "4"], index=[7, 8, 9]))
    assert taken.image_ids.tolist() == ["2", "4", "4"] and taken.y.tolist() == [2, 1, 1]
    assert np.array_equal(taken.x, train.x[[2, 0, 0]])
    assert train.take([]).x.shape == (0, WIDTH)
    with pytest.raises(FeatureError, match=r"'11' and 1 more among these 3 images"):
        train.take(["2", "11", "x"])
    with pytest.raises(data.DataError, match="unknown"):
        extract_features(encoder, toy, "validation")
    (tmp_path / "images" / "2.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"CSV row 4: .*2\.jpg: the file is empty"):
        extract_features(encoder, toy, "train", cache=tmp_path)


def test_an_absent_split_is_empty(encoder, paths, tmp_path):
    empty = extract_features(encoder, study(tmp_path / "images", ["1", "2"], [0, 1]), "val", cache=tmp_path)
    assert empty.x.shape == (0, WIDTH) and empty.y.shape == (0,) and len(empty.image_ids) == 0


def test_settings_that_cannot_be_are_refused(encoder, paths):
    for options in ({"batch_size": 0}, {"num_workers": -1}, {"names": ["one"]}):
        with pytest.raises(FeatureError):
            extract(encoder, paths, **options)
