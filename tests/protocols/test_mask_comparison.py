"""Extended Data Figs. 5 and 6: segmentation over seeds and label fractions, and the same images by several encoders."""

import os

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager
from PIL import Image

from panderm_utils import results, workspace
from panderm_utils.manifests import load_dataset_manifest
from panderm_utils.protocols import label_efficiency, segmentation
from panderm_utils.protocols.segmentation import PROTOCOL
from panderm_utils.workspace import REPOSITORY
from tests.mask_record import ellipse, save_mask_record

NAMES = [f"ISIC_{i:07}" for i in range(12)]
FRACTIONS = {0.1: 0.12, 0.5: 0.08, 1: 0.04}  # of the masks, and how far predictions are off
DATASET = "isic2018_task1"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Three seeds of two encoders at three fractions; the second encoder is worse, and lacks a seed at 10%."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("seeds"))
    for encoder, worse in (("panderm_tiny", 0), ("random_tiny", 0.05)):
        for fraction, shift in FRACTIONS.items():
            for seed in range(2 if (worse and fraction == 0.1) else 3):
                save(space, NAMES, encoder, seed, fraction, shift + worse + 0.01 * seed)
    return space


def save(space, names, encoder, seed, fraction, shift):
    settings = {"train": round(200 * fraction), "train_fraction": fraction, "replicates": 1000}
    return save_mask_record(space, names, DATASET, encoder, seed, shift, protocol=PROTOCOL, **settings)


def read(space, **every):
    runs = results.read_records(space.records, protocol=PROTOCOL.name)
    return results.paper_scores(
        runs, space.profile, PROTOCOL, **(every or {"seed": None, "train_fraction": results.ANY})
    )


def test_a_point_of_a_curve_is_the_mean_over_its_seeds(space):
    scores = read(space)
    curves, draws = segmentation.read_seeds(scores, ["jaccard", "dice"], replicates=200)
    assert len(curves) == 2 * 3 * 2
    assert len(draws) == (9 + 8) * 2
    rows = scores.query("encoder == 'random_tiny' and metric == 'dice' and train_fraction == 0.1")
    (point,) = curves.query("encoder == 'random_tiny' and metric == 'dice' and fraction == 0.1").to_dict("records")
    values = rows["value"].to_numpy()
    assert point["draws"] == 2
    assert point["images"] == 20
    assert point["dataset_label"].endswith(", Dice")
    np.testing.assert_allclose(
        [point[name] for name in ("value", "draw_low", "draw_high", "draw_sd")],
        [values.mean(), values.min(), values.max(), values.std(ddof=1)],
    )
    assert point["low"] < point["value"] < point["high"]


def test_the_interval_of_the_mean_is_over_images_and_narrower_than_a_seed_s(space):
    scores = read(space)
    curves = segmentation.read_seeds(scores, ["dice"], replicates=1000)[0].set_index(["encoder", "fraction"])
    one = scores.query("metric == 'dice'").set_index(["encoder", "train_fraction", "seed"])
    assert curves.loc[("panderm_tiny", 1), "low"] == pytest.approx(one.loc[("panderm_tiny", 1, 1), "low"], abs=0.01)


def test_a_seed_on_other_images_is_left_out_with_its_name(space, tmp_path):
    own = workspace.open_workspace("demo", output_root=tmp_path)
    save(own, NAMES, "panderm_tiny", 0, 0.5, 0.05)
    other = save(own, NAMES[1:], "panderm_tiny", 1, 0.5, 0.05)
    with pytest.warns(UserWarning, match=f"{other.name} has other test images .* --force"):
        curves, draws = segmentation.read_seeds(read(own), ["dice"], replicates=50)
    assert curves["draws"].tolist() == [1]
    assert draws["draw"].tolist() == [0]


def test_data_needed_is_read_off_seeds_with_every_fraction(space):
    draws = segmentation.read_seeds(read(space), ["dice"], replicates=50)[1]
    complete = segmentation.complete_draws(draws)
    kept = complete.groupby("encoder")["draw"].unique().map(list).to_dict()
    assert kept == {"panderm_tiny": [0, 1, 2], "random_tiny": [0, 1]}
    needed = label_efficiency.data_needed_table(complete)
    assert len(needed) == 2
    match = label_efficiency.find_match(complete)
    assert match[1:] == (*complete.drop_duplicates("encoder_label")["encoder_label"],)
    assert segmentation.complete_draws(draws[draws["fraction"] < 1]).empty
    assert segmentation.complete_draws(draws[draws["fraction"] == 1]).empty


def test_what_is_missing_comes_with_the_command_that_makes_it(space):
    missing = segmentation.missing_seeds(read(space), "demo", list(FRACTIONS), range(4)).set_index("dataset")
    assert missing.loc[DATASET, ["missing", "of"]].tolist() == [3, 12]  # seed 3 of the demo's encoder
    assert missing.loc[DATASET, "command"] == (
        "python run_all.py --profile demo --protocols segmentation --datasets isic2018_task1 "
        "--encoders panderm_tiny --seeds 0 1 2 3 -p train_fraction=0.1,0.5,1"
    )
    made = segmentation.missing_seeds(read(space), "demo", list(FRACTIONS), range(3))
    assert DATASET not in made["dataset"].tolist()


def test_examples_are_the_same_images_of_each_encoder(space, tmp_path):
    scores = read(space, seed=0)
    examples = segmentation.shared_examples(scores[scores["headline"]], count=1)
    by_encoder = examples.groupby("encoder_label")
    assert by_encoder["group"].apply(list).tolist() == [["best", "median", "worst"]] * 2
    best, _, worst = by_encoder["filename"].apply(list).iloc[0]
    means = pd.concat(
        pd.read_csv(f"{folder}/predictions.csv").set_index("filename")["dice_original"]
        for folder in examples["folder"].unique()
    )
    means = means.groupby(level=0).mean()
    assert (means.idxmax(), means.idxmin()) == (best, worst)

    card = load_dataset_manifest(DATASET)
    path = tmp_path / card.image_root / f"{best}{card.image_suffix or ''}"
    path.parent.mkdir(parents=True)
    Image.fromarray((ellipse(90, 120, 0.5, 0.5, 0.2, 0.2) * 255).astype(np.uint8)).convert("RGB").save(path, "jpeg")
    found, pictures, masks = segmentation.open_outlines(examples, card, tmp_path)
    assert found["filename"].tolist() == [best, best]
    assert [picture.size for picture in pictures] == [(120, 90)] * 2
    assert (masks[0].true == masks[1].true).all()
    assert (masks[0].predicted != masks[1].predicted).any()
    assert segmentation.shared_examples(scores.iloc[:0]).empty


@pytest.fixture(scope="module")
def kernel(space):
    """A kernel for both notebooks: its imports take longer than they do."""
    manager = KernelManager()
    manager.start_kernel(env={**os.environ, "PANDERM_OUTPUT_ROOT": str(space.root.parent)})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extended_data_figure_5", "extended_data_figure_6"])
def test_the_notebook_draws_the_records(space, kernel, name):
    notebook = nbformat.read(REPOSITORY / f"notebooks/paper/{name}.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    place = {"metadata": {"path": str(REPOSITORY / "notebooks/paper")}}
    nbclient.NotebookClient(notebook, km=kernel, resources=place).execute()
    table = pd.read_csv(space.figures / f"{name}.csv")
    assert set(table["encoder"]) == {"panderm_tiny", "random_tiny"}
    assert (space.figures / f"{name}.pdf").is_file()
