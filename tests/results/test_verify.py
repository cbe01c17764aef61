"""Verification: what is right is confirmed, one changed digit is named, and nothing is passed over."""

import gzip
import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from panderm_utils import workspace
from panderm_utils.figures import tables
from panderm_utils.protocols import list_protocols, load_protocol
from panderm_utils.protocols.fine_tune.metrics import evaluate_fine_tuning
from panderm_utils.protocols.label_efficiency import subsets
from panderm_utils.protocols.label_efficiency import sweep as label_efficiency
from panderm_utils.results import read_record, records
from panderm_utils.results import verification as verify
from panderm_utils.stats import metrics
from tests.mask_record import save_mask_record

IMAGES, REPLICATES = 60, 40


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("paper", output_root=tmp_path)


def draw(seed, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(IMAGES) % classes)
    proba = rng.dirichlet(np.ones(classes), size=IMAGES) + 0.3 * np.eye(classes)[y]
    return y, proba / proba.sum(axis=1, keepdims=True), [f"{i:02}.jpg" for i in range(IMAGES)]


def save(space, protocol, seed=0, classes=3):
    """A record of a protocol as its notebook leaves it."""
    if protocol == "segmentation":
        names = [f"{i}.jpg" for i in range(20)]
        return save_mask_record(space, names, "isic2018_task1", "random_tiny", seed, protocol=load_protocol(protocol))
    y, proba, names = draw(seed, classes)
    run = records.begin_run(load_protocol(protocol), "demo", "random_tiny", seed, space, replicates=REPLICATES)
    more = {}
    if protocol == "linear_probe":
        scores = metrics.evaluate(y, proba, REPLICATES, seed)
    elif protocol == "fine_tune":
        views = draw(seed + 1, classes)[1]
        tta = evaluate_fine_tuning(y, views, REPLICATES, seed)
        scores = tables.with_suffix(evaluate_fine_tuning(y, proba, REPLICATES, seed), tta, "_tta")
        more["predictions_tta.csv"] = records.prediction_table(names, y, views)
    elif protocol == "external_validation":
        y, proba, names = draw(seed, 2)
        answers = {target: draw(seed + i, 2) for i, target in enumerate(("ddi", "hiba"), start=1)}
        external = {target: metrics.evaluate(y, p, REPLICATES, seed) for target, (y, p, _) in answers.items()}
        scores = metrics.evaluate(y, proba, REPLICATES, seed)
        for target, numbers in external.items():
            scores.loc[f"auroc_{target}"] = numbers.loc["auroc"]
        told = [numbers.reset_index().assign(dataset=target, images=IMAGES) for target, numbers in external.items()]
        tested = [records.prediction_table(n, y, p).assign(dataset=target) for target, (y, p, n) in answers.items()]
        more = {"external.csv": pd.concat(told), "predictions_external.csv.gz": pd.concat(tested)}
    else:
        drawn = [subsets.Subset(f, d, np.arange(round(90 * f))) for f, d in ((0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1))]
        drawn.append(subsets.Subset(1.0, 0, np.arange(90)))
        every = tuple(draw(seed + 10 + i, classes)[1] for i in range(4))
        sweep = label_efficiency.Sweep(tuple(drawn), (*every, proba), pd.DataFrame())
        curve = label_efficiency.score_sweep(sweep, y, REPLICATES, seed)
        scores = label_efficiency.full_scores(curve)
        more = label_efficiency.record_tables(sweep, curve, [f"t{i}" for i in range(90)], names, y)
    return records.save_record(run, scores, records.prediction_table(names, y, proba), "weighted_f1", more)


def change(path, old, new, count=1):
    """Replaces the first match of a pattern in a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        text = file.read()
    changed, times = re.subn(old, new, text, count=count)
    assert times == count
    with opened(path, "wt") as file:
        file.write(changed)


def wrong(table):
    return table[table["problem"] != ""]


def test_every_number_of_every_protocol_is_recomputed_and_equal(space):
    for protocol in list_protocols():
        save(space, protocol, seed=3)
    save(space, "linear_probe", classes=2)
    found = verify.verify_records(space.records, load_protocol, 2)
    assert wrong(found).empty, wrong(found)
    assert found["difference"].abs().max() <= verify.TOLERANCE
    stored = {(r.run_id, r.metric, r.column): r.stored for r in found.itertuples()}
    for folder in space.records.iterdir():
        for metric, numbers in read_record(folder)["metrics"].items():
            assert set(numbers) == {"value", "low", "high", "normal_low", "normal_high"}
            assert {column: stored[folder.name, metric, column] for column in numbers} == numbers
    (sweep,) = space.records.glob("*label_efficiency*")
    checked = found[(found["run_id"] == sweep.name)]["metric"].str.extract(r"\((.+)\)")[0].value_counts()
    assert checked["draws.csv"] == len(pd.read_csv(sweep / "draws.csv")) == 5 * 6
    assert checked["curve.csv"] == len(pd.read_csv(sweep / "curve.csv")) * 8
    (external,) = space.records.glob("*external_validation*")
    checked = found[found["run_id"] == external.name]
    assert len(checked) == 5 * (6 + 2 + 2 * 6)  # its own test split, AUROC of two targets, all of external.csv
    text = verify.describe_verification(found)
    assert text.startswith("6 records, ")
    assert "all equal (to 1e-09), all files as written" in text
    assert "A record forged in all its parts would pass" in text


@pytest.mark.parametrize(
    ("protocol", "file", "metric"),
    [
        ("linear_probe", "predictions.csv", "accuracy"),
        ("fine_tune", "predictions_tta.csv", "accuracy_tta"),
        ("label_efficiency", "predictions_draws.csv.gz", r"accuracy of 10%, draw 0 \(draws.csv\)"),
        ("external_validation", "predictions_external.csv.gz", r"accuracy on ddi \(external.csv\)"),
    ],
)
def test_one_changed_digit_of_a_prediction_is_named_and_no_other_record_is(space, protocol, file, metric):
    folder = save(space, protocol)
    save(space, "linear_probe", seed=7)
    y, proba, names = records.parse_predictions(pd.read_csv(folder / file, dtype=str).head(IMAGES))
    last = proba.shape[1] - 1  # two classes have one column
    right = names[next(i for i in range(IMAGES) if y[i] == last == proba[i].argmax())]
    if last == 1:
        change(folder / file, rf"({right},1,1,)0\.", r"\g<1>0.0000")
    else:  # the first and last probability change places, so that they still sum to 1
        change(folder / file, rf"({right},2,2,)([^,]+)(,[^,]+,)([^,\n]+)", r"\g<1>\g<4>\g<3>\g<2>")
    found = wrong(verify.verify_records(space.records, load_protocol))
    assert set(found["run_id"]) == {folder.name}
    assert set(found["problem"]) == {verify.DIFFERS, f"{file} was changed after it was written"}
    (row,) = found[found["metric"].str.fullmatch(metric) & (found["column"] == "value")].itertuples()
    assert row.difference == pytest.approx(-1 / IMAGES)  # one image fewer is right
    text = verify.describe_verification(found)
    assert "1 of the records cannot be confirmed" in text
    assert folder.name in text


def test_one_changed_digit_of_a_stored_number_is_named(space):
    folder = save(space, "label_efficiency")
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["auroc"]["high"] += 1e-6
    (folder / "record.json").write_text(json.dumps(record))
    change(folder / "curve.csv", r"(?m)^(0.5,.*,aupr,0\.\d\d)\d", lambda m: m[1] + str((int(m[0][-1]) + 1) % 10))
    change(folder / "draws.csv", r"(?m)^(1.0,.*,aupr,0\.\d\d)\d", lambda m: m[1] + str((int(m[0][-1]) + 1) % 10))
    found = wrong(verify.verify_records(space.records, load_protocol))
    changed = found["problem"].ne(verify.DIFFERS)
    files = {"draws.csv was changed after it was written", "curve.csv was changed after it was written"}
    assert set(found.loc[changed, "problem"]) == files
    found = found[~changed]
    assert found[["metric", "column"]].to_numpy().tolist() == [
        ["auroc", "high"],
        ["aupr of 100%, draw 0 (draws.csv)", "value"],
        ["aupr of 50% (curve.csv)", "value"],
    ]
    assert found["difference"].abs().iloc[0] == pytest.approx(1e-6)


def test_the_text_names_each_number_that_differs_and_says_how_many_more_there_are():
    wrong = [("a", f"m{i}", "value", 0.5, 0.25 + i, 0.0, verify.DIFFERS) for i in range(12)]
    right = ("b", "accuracy", "value", 0.5, 0.5, 0.0, "")
    lost = ("c", "", "", np.nan, np.nan, np.nan, "damaged: it is gone")
    text = verify.describe_verification(pd.DataFrame([*wrong, right, lost], columns=verify.COLUMNS))
    assert text.splitlines() == [
        "3 records, 13 metrics recomputed with their intervals: 2 of the records cannot be confirmed",
        "",
        "a",
        *(f"  m{i} value: stored 0.5, recomputed {i}.25" for i in range(10)),
        "  ... and 2 more",
        "c",
        "  damaged: it is gone",
    ]


def lose_a_row(folder):
    table = pd.read_csv(folder / "draws.csv")
    table.iloc[:-1].to_csv(folder / "draws.csv", index=False)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "predictions.csv").write_text(""), "damaged: No columns"),
        (lambda folder: change(folder / "predictions.csv", r",0\.", ",O."), "damaged: could not convert"),
        (lambda folder: change(folder / "predictions.csv", "true_label", "label"), "no 'true_label' in it"),
        (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv is missing"),
        (lambda folder: (folder / "record.json").write_text("{"), "not a complete record"),
        (lambda folder: (folder / "curve.csv").unlink(), "curve.csv"),
        (lambda folder: change(folder / "predictions.csv", "00.jpg", "0.jpg"), "are not those of predictions.csv"),
        (lambda folder: (folder / "predictions_draws.csv.gz").write_bytes(b"\x1f\x8b\x08"), "damaged"),
        (
            lambda folder: change(folder / "record.json", '"label_efficiency"', '"divination"'),
            "cannot be verified: protocol 'divination' is unknown",
        ),
        (lambda folder: change(folder / "record.json", '"accuracy"', '"luck"'), verify.DIFFERS),
        (lose_a_row, verify.DIFFERS),
    ],
)
def test_what_cannot_be_verified_is_told_by_name_and_counts(space, damage, told):
    folder, other = save(space, "label_efficiency"), save(space, "linear_probe", seed=5)
    damage(folder)
    found = verify.verify_records(space.records, load_protocol)
    assert set(wrong(found)["run_id"]) == {folder.name}
    assert any(told in problem for problem in wrong(found)["problem"])
    assert other.name in set(found["run_id"])  # the rest is verified all the same
    assert folder.name in verify.describe_verification(found)


def test_metrics_that_are_undefined_stay_so(space):
    y, proba = np.zeros(8, dtype=int), draw(0)[1][:8]
    run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space, replicates=REPLICATES)
    with pytest.warns(metrics.MetricWarning):
        scores = metrics.evaluate(y, proba, REPLICATES, 0)
    folder = records.save_record(
        run, scores, records.prediction_table([f"{i}" for i in range(8)], y, proba), "accuracy"
    )
    assert wrong(verify.verify_records(space.records, load_protocol)).empty
    change(folder / "record.json", '(?s)("auroc": {\\s*"value": )null', r"\g<1>0.5")
    assert wrong(verify.verify_records(space.records, load_protocol))["metric"].tolist() == ["auroc"]


def shuffled_names(folder):
    """Another image under each name: the metrics stay what they are."""
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    table["filename"] = table["filename"].to_numpy()[::-1]
    table.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")


def record_of_another_encoder(folder):
    """Whole, consistent and under the name of this run."""
    other = save(workspace.open_workspace("paper", output_root=folder.parents[2] / "other"), "linear_probe", seed=9)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    change(folder / "record.json", f'"run_id": "{other.name}"', f'"run_id": "{folder.name}"')


def with_new_digest(folder):
    """Names shuffled by someone who knows of the digests of files."""
    shuffled_names(folder)
    digest = hashlib.sha256((folder / "predictions.csv").read_bytes()).hexdigest()
    change(folder / "record.json", '("predictions.csv": ")[0-9a-f]+', rf"\g<1>{digest}")


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (shuffled_names, "predictions.csv was changed after it was written"),
        (with_new_digest, "the images and their labels or masks in predictions.csv are not those that were scored"),
        (
            record_of_another_encoder,
            "seed and settings are those of demo-linear_probe-random_tiny-seed9",
        ),
        (lambda folder: change(folder / "record.json", r'"schema": \d+', '"schema": 99'), "it has schema 99"),
    ],
)
def test_a_forged_record_whose_numbers_fit_is_told(space, forge, told):
    folder, _ = save(space, "linear_probe", seed=5), save(space, "linear_probe", seed=6)
    forge(folder)
    found = wrong(verify.verify_records(space.records, load_protocol))
    assert set(found["run_id"]) == {folder.name}
    assert any(told in problem for problem in found["problem"]), found["problem"].tolist()


@pytest.mark.parametrize("file", ["predictions.csv", "record.json"])
def test_tables_leave_out_a_record_whose_files_were_changed(space, file):
    folder, other = save(space, "linear_probe", seed=5), save(space, "linear_probe", seed=6)
    if file == "predictions.csv":
        shuffled_names(folder)
    else:
        change(folder / "record.json", '("predictions.csv": ")[0-9a-f]', r"\g<1>")
    with pytest.warns(records.RecordWarning, match="predictions.csv was changed"):
        assert set(records.read_records(space.records)["run_id"]) == {other.name}
