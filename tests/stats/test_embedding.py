"""Features in two dimensions: what is near stays near, what a record names is what is shown, and nothing is hidden."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable
from panderm_utils.protocols import load_protocol

# isort: split
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from panderm_utils import workspace
from panderm_utils.encoders import features
from panderm_utils.encoders import loading as encoders
from panderm_utils.figures import embedding as embedding_plots
from panderm_utils.figures import plots
from panderm_utils.manifests import reading as manifests
from panderm_utils.results import records, selection
from panderm_utils.results.recorded_features import (
    FeaturesGone,
    agreement_table,
    embed_features,
    features_of_records,
    open_examples,
)
from panderm_utils.results.recorded_features import read_features as read_back
from panderm_utils.stats import embedding
from panderm_utils.stats.embedding import EmbeddingError, EmbeddingWarning

ROOT = Path(__file__).parents[2]


def blobs(count=40, width=30, apart=20.0):
    """Two clouds far from each other: features [2 * count, width] and labels."""
    y = np.repeat([0, 1], count)
    x = np.random.default_rng(0).normal(size=(2 * count, width)) + apart * y[:, None] / width**0.5
    return x.astype(np.float32), y


@pytest.mark.parametrize("installed", [True, False], ids=["umap", "no umap"])
def test_what_is_near_stays_near_every_time(installed, monkeypatch, recwarn):
    if installed:
        umap = pytest.importorskip("umap")  # where it is not installed, the other case is the only one
    else:
        monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    x, y = blobs()
    plane, used = embedding.embed(x)
    assert plane.shape == (80, 2)
    assert LogisticRegression().fit(plane, y).score(plane, y) == 1
    # Within a cloud, too: the ten nearest in the plane are mostly near among the features.
    near, shown = (np.argsort(np.linalg.norm(p[:, None] - p[None], axis=2), axis=1)[:, 1:11] for p in (x, plane))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(near, shown, strict=True)]) > 4  # by chance: 2.5
    np.testing.assert_array_equal(embedding.embed(x)[0], plane)
    told = [str(w.message) for w in recwarn if w.category is EmbeddingWarning]
    assert (used, len(told)) == (("UMAP", 0) if installed else ("t-SNE", 2))
    assert umap.umap_.smooth_knn_dist.stats.cache_path if installed else "install umap-learn" in told[0]


def test_components_are_those_of_scikit_learn_and_of_the_notebooks_picture():
    x = np.random.default_rng(1).normal(size=(50, 8)) * np.arange(1, 9)
    plane, used = embedding.embed(x, "pca")
    assert used == "PCA"
    np.testing.assert_allclose(np.abs(plane), np.abs(PCA(2).fit_transform(x)), rtol=1e-4, atol=1e-4)
    points = plots.feature_map(x, np.zeros(50, int), ["one"]).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.asarray(points), plane, rtol=1e-4, atol=1e-4)


def test_few_images_and_few_features_are_laid_out_too():
    some = [np.random.default_rng(0).normal(size=shape) for shape in ((0, 8), (1, 8), (14, 8), (5, 1))]
    for x in (*some, np.ones((20, 4)), np.repeat(some[2], 3, axis=0)):  # the last two: many images, but alike
        plane, used = embedding.embed(x, "tsne")
        assert (plane.shape, used) == ((len(x), 2), "PCA")
        assert np.isfinite(plane).all()


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(EmbeddingError, match="'trimap' is unknown; write one of umap, tsne, pca"):
        embedding.embed(np.zeros((3, 2)), "trimap")
    with pytest.raises(EmbeddingError, match=r"\[3, 2\] must be .* finite"):
        embedding.embed(np.full((3, 2), np.nan))


def test_neighbours_of_the_same_class_are_counted_as_by_hand():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 5)), rng.integers(0, 3, 30)
    same, chance = embedding.neighbour_agreement(x, y, 4)
    near = np.argsort(np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(30, np.inf)), axis=1)[:, :4]
    assert same == pytest.approx(np.mean([y[j] == y[i] for i in range(30) for j in near[i]]))
    assert chance == pytest.approx(np.mean([y[j] == y[i] for i in range(30) for j in range(30) if i != j]))
    far, labels = blobs()
    assert embedding.neighbour_agreement(far, labels)[0] == 1
    assert np.isnan(embedding.neighbour_agreement(far[:1], labels[:1])).all()


@pytest.mark.parametrize(("classes", "shown"), [(1, 12), (2, 12), (7, 14), (12, 24), (23, 24)])
def test_examples_go_from_the_midst_of_a_class_to_its_furthest_point(classes, shown):
    rng = np.random.default_rng(3)
    y = np.concatenate([np.repeat(np.arange(classes), 30), np.arange(classes // 2)])  # the first ones are more frequent
    plane = rng.normal(size=(len(y), 2))
    at = embedding.choose_examples(plane, y)
    assert len(set(at)) == len(at) == shown
    used = sorted(set(y[at]))
    assert used == list(range(min(classes, 12)))
    for k in used:
        far = np.linalg.norm(plane - np.median(plane[y == k], axis=0), axis=1)
        mine = far[[i for i in at if y[i] == k]]
        assert mine[0] == far[y == k].min()
        assert mine[-1] == far[y == k].max()
        assert (np.diff(mine) > 0).all()
    assert embedding.choose_examples(plane[:1], y[:1]).tolist() == [0]
    assert len(embedding.choose_examples(plane[:0], y[:0])) == 0


def test_labels_are_never_on_each_other_and_stay_near():
    rng = np.random.default_rng(4)
    for points in (rng.normal(size=(24, 2)), np.zeros((24, 2)), np.zeros((0, 2))):
        places = embedding.place_labels(points, 0.5)
        gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(len(points), 1)]
        assert (gaps >= 0.5 - 1e-9).all()
        distance = np.linalg.norm(places - points, axis=1)
        assert (distance < 3.1).all()
        assert (distance[:1] <= 0.5 + 1e-9).all()  # the first has all the room


# From here on: records, their features in a real cache, and images.

CLASSES, COUNT, SMALL = 7, 21, 8  # of ham10000; images of the test split; images of a shard
TOY = {"architecture": "beit", "layout": "none", "licence": "MIT", "width": 48, "depth": 1, "heads": 3}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A paper workspace with the records of two encoders on 21 images, in a cache of several shards."""
    root = tmp_path_factory.mktemp("outputs")
    space = workspace.open_workspace("paper", root / "data", output_root=root / "out")
    card = manifests.load_dataset_manifest("ham10000")
    images = space.data_root / card.image_root
    images.mkdir(parents=True)
    names, y = [f"ISIC_{i:03}" for i in range(COUNT)], np.arange(COUNT) % CLASSES  # names without a suffix
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.jpg")
    files = [f"{name}.jpg" for name in names]
    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD", SMALL)
        for encoder in ("panderm_large", "dinov2_large"):
            toy = manifests.EncoderManifest(name=encoder, title=encoder, num_features=48, **TOY)
            if encoder == "dinov2_large":
                toy = dataclasses.replace(toy, depth=2)  # of the same width: told apart by its digest alone
            model = encoders.load_encoder(toy, device="cpu")
            paths = [images / file for file in files]
            found = features.extract_files(model, paths, files, cache=space.cache, num_workers=0)
            features.extract_files(model, paths[:10], files[:10], cache=space.cache, num_workers=0)  # another list
            run = records.begin_run(load_protocol("linear_probe"), card.name, encoder, 0, space)
            run.note(encoder_facts=encoders.describe(model), features={"test": found.describe()})
            run.note(data={"split_sizes": {"test": COUNT}})
            scores = pd.DataFrame({"value": 0.5, "low": 0.4, "high": 0.6}, index=["weighted_f1"])
            proba = np.full((COUNT, CLASSES), 1 / CLASSES)
            records.save_record(run, scores, records.prediction_table(names, y, proba), "weighted_f1")
            expected[encoder] = found.x
    return space, card, names, y, expected


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("panderm_utils.encoders.feature_cache.SHARD", SMALL)


def runs_of(space):
    scores = selection.paper_scores(records.read_records(space.records), "paper", load_protocol("linear_probe"))
    return scores[scores["dataset"] == "ham10000"]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("there", [True, False], ids=["images there", "images gone"])
def test_the_features_of_a_record_are_read_back_in_its_order(outputs, there, tmp_path):
    space, card, names, y, expected = outputs
    if not there:
        space = dataclasses.replace(space, data_root=tmp_path)
    found, gone = features_of_records(runs_of(space), space, card)
    assert [run.run_id for run in found] == [f"ham10000-linear_probe-{e}-seed0" for e in expected]
    assert gone.empty
    for run, x in zip(found, expected.values(), strict=True):
        np.testing.assert_array_equal(run.x, x)
        np.testing.assert_array_equal(run.y, y)
        assert run.images.tolist() == names
    points, used = embed_features(found, "pca")
    assert used == "PCA"
    assert len(points) == 2 * COUNT
    pictures = open_examples(points, card, space.data_root)
    assert len(pictures) == (14 if there else 0)
    if there:
        shown = points.dropna(subset=["example"])
        ours, theirs = (rows.set_index("example")["image"] for _, rows in shown.groupby("run_id"))
        assert ours.sort_index().to_dict() == theirs.sort_index().to_dict()  # the same images in both panels
        path = space.data_root / card.image_root / f"{ours[3]}.jpg"
        middle = np.asarray(Image.open(path))[:, 5:35].mean(axis=(0, 1))
        np.testing.assert_allclose(np.asarray(pictures[3]).mean(axis=(0, 1)), middle, atol=2)
    table = agreement_table(found)
    assert table["images"].tolist() == [COUNT, COUNT]
    nearest = KNeighborsClassifier(10).fit(expected["panderm_large"], y).kneighbors(return_distance=False)
    assert table["same_class"][0] == pytest.approx((y[nearest] == y[:, None]).mean())


@pytest.mark.usefixtures("small_shards")
def test_of_many_images_the_same_few_are_drawn_in_every_run(outputs):
    space, card, names, y, expected = outputs
    found, _ = features_of_records(runs_of(space), space, card, most=9)
    assert found[0].images.tolist() == found[1].images.tolist()
    at = [names.index(name) for name in found[0].images]
    assert at == sorted(set(at))
    assert len(at) == 9
    np.testing.assert_array_equal(found[1].x, expected["dinov2_large"][at])
    np.testing.assert_array_equal(found[1].y, y[at])


@pytest.mark.usefixtures("small_shards")
def test_features_that_are_gone_or_others_are_never_shown_and_the_command_is_told(outputs, tmp_path):
    whole, card, *_ = outputs
    space = dataclasses.replace(whole, cache=tmp_path)
    scores = runs_of(space)
    found, gone = features_of_records(scores, space, card)
    assert found == []
    assert set(gone["why"]) == {"the cache has been deleted or moved"}
    command = "python run_all.py --profile paper --protocols linear_probe --datasets ham10000 --encoders panderm_large"
    assert gone["command"][0] == f"{command} --seeds 0 --force"
    # A shard is lost, then the features are computed anew, and are others by a last digit.
    shutil.copytree(whole.cache, tmp_path, dirs_exist_ok=True)
    lost = next(path for path in sorted(tmp_path.glob("features/*/*.shard")) if shard_length(path) == COUNT % SMALL)
    lost.unlink()
    found, gone = features_of_records(scores, space, card)
    assert (len(found), set(gone["why"])) == (1, {"the cache has been deleted or moved"})
    shutil.copytree(whole.cache, tmp_path, dirs_exist_ok=True)
    content = dict(np.load(lost))
    content["x"][0, 0] = np.nextafter(content["x"][0, 0], 9, dtype=np.float32)
    with lost.open("wb") as file:
        np.savez(file, **content)
        file.write(bytes(32))
    found, gone = features_of_records(scores, space, card)
    assert (len(found), len(gone)) == (1, 1)
    assert "computed later" in gone["why"][0]
    # A record that names no features.
    run = records.begin_run(load_protocol("linear_probe"), "ham10000", "swavderm_resnet50", 0, space)
    folder = records.save_record(run, pd.DataFrame(), records.prediction_table(["a"], [0], [[0.5, 0.5]]), "weighted_f1")
    with pytest.raises(FeaturesGone, match="does not say"):
        read_back(folder, space.cache, tmp_path, ".jpg")
    shutil.rmtree(folder)


def shard_length(path):
    with np.load(path) as arrays:
        return len(arrays["x"])


def test_reading_loads_neither_torch_nor_umap():
    """A figure of ten datasets must not wait for them."""
    code = "import sys; from panderm_utils.figures import figure_umap, metrics_table; "
    code += "from panderm_utils.results import features_of_records; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "umap", "numba"} & set(done.stdout.split())


def test_points_stand_where_they_were_laid_out_and_numbers_lead_to_them():
    rng = np.random.default_rng(5)
    points = pd.DataFrame(
        {"encoder_label": "PanDerm", "image": [f"{i}" for i in range(60)], "label": np.arange(60) % 9}
    )
    points[["x", "y"]] = rng.normal(size=(60, 2))
    points["example"] = pd.array([1, 2, *[None] * 58], dtype="Int64")
    pictures = {1: Image.new("RGB", (8, 8)), 2: Image.new("RGB", (8, 8), "white")}
    names = [(f"c{k}", f"class {k}") for k in range(9)]
    figure = embedding_plots.figure_umap(points, names, "UMAP", {"PanDerm": "#D55E00"}, pictures)
    panel, first, second = figure.axes
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in panel.collections if len(c.get_offsets()) > 1])
    np.testing.assert_allclose(sorted(drawn.tolist()), sorted(points[["x", "y"]].to_numpy().tolist()))
    leaders = sorted(line.get_xydata()[0].tolist() for line in panel.lines)
    np.testing.assert_allclose(leaders, sorted(points[["x", "y"]].to_numpy()[:2].tolist()))
    assert {"1", "2", "n = 60 test images"} <= {text.get_text() for text in panel.texts}
    assert [axis.get_title(loc="left") for axis in (first, second)] == ["c0", "c1"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "c0: class 0 (7)"
    looks = {(h.get_color(), h.get_marker()) for h in figure.legends[0].get_lines()}
    assert len(looks) == 9  # the ninth class has the first's colour and another shape
    bare = embedding_plots.figure_umap(points, names, "UMAP", {}, {})
    assert len(bare.axes) == 1
    assert not bare.axes[0].lines
