"""Label efficiency: one probe per subset of the training labels, all on the same features.

    sweep = sweep_probes(train.x, train.y, test.x, drawn, num_classes)   one probe per fraction and draw
    curve = score_sweep(sweep, test.y)                                   mean, spread over draws, bootstrap interval

No fit is warm-started: where a solver stops depends on where it starts, so results would depend on earlier fits. The
fit with all labels is the same for all draws and done once.

A record of this protocol holds, besides predictions.csv with the predictions of the probe trained on all labels:

    curve.csv                  one row per fraction and metric
    draws.csv                  one row per fraction, draw and metric
    predictions_draws.csv.gz   the predictions of every smaller fraction and draw
    subsets.csv                the training images in the order of the fit with all labels, and their rank in each draw,
                               from 0 (-1: in no smaller fraction); a subset of n images has ranks 0 to n - 1

Symbols: N test images, K classes, R replicates.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.manifests import Pair
from panderm_utils.messages import UserError
from panderm_utils.protocols import linear_probe  # imports torch only where a probe is fitted, not to read records
from panderm_utils.protocols.label_efficiency.subsets import Subset
from panderm_utils.results import (
    compare_metrics,
    parse_predictions,
    prediction_table,
    read_predictions,
    resampling,
)
from panderm_utils.stats import METRICS, Scorer, bootstrap, intervals, on_test_set

FILES = ("curve.csv", "draws.csv", "predictions_draws.csv.gz", "subsets.csv")


@dataclass(frozen=True, eq=False)
class Sweep:
    """The predictions of every subset.

    Attributes:
        subsets: From `draw_subsets`, all labels last.
        proba: Class probabilities [N, K] of the test images, one array per subset.
        fits: `LinearProbe.describe` of each fit, with its fraction, draw, images and seconds.
    """

    subsets: tuple[Subset, ...]
    proba: tuple[np.ndarray, ...]
    fits: pd.DataFrame

    @property
    def full(self) -> np.ndarray:
        """The predictions [N, K] of the probe trained on all labels."""
        return self.proba[-1]


def sweep_probes(
    x, y, x_test, subsets: Sequence[Subset], num_classes: int, seed: int = 0, solver: str = "converged"
) -> Sweep:
    """Returns the test predictions of one linear probe per subset of the training rows.

    Args:
        x: Features [n, D] of all training images, in the table's order; y their labels [n].
        x_test: Features [N, D] of the test images.
        solver: As in `fit_linear_probe`. "published" follows upstream's path at every fraction; "converged" finds the
            optimum and is much faster.

    Raises:
        ProbeError: As `fit_linear_probe`, for example if a published draw has only one class.
    """
    x, y, proba, fits = np.asarray(x), np.asarray(y), [], []
    for subset in tqdm(subsets, desc="probes", unit="fit", leave=False):
        probe = linear_probe.fit_linear_probe(x[subset.rows], y[subset.rows], num_classes, seed, solver)
        proba.append(probe.predict_proba(x_test))
        identity = {"fraction": subset.fraction, "draw": subset.draw, "images": len(subset.rows)}
        fits.append({**identity, **probe.describe(), "seconds": probe.seconds})
    return Sweep(tuple(subsets), tuple(proba), pd.DataFrame(fits))


def score_draws(sweep: Sweep, y_test, class_names=None) -> pd.DataFrame:
    """Returns every metric of every fraction and draw: fraction, draw, images, metric, value.

    `class_names` are for warnings, as in `stats.evaluate`.
    """
    rows = []
    for subset, proba in zip(sweep.subsets, sweep.proba, strict=True):
        identity = {"fraction": subset.fraction, "draw": subset.draw, "images": len(subset.rows)}
        rows += [
            {**identity, "metric": m, "value": v}
            for m, v in zip(METRICS, on_test_set(Scorer(y_test, proba, class_names)), strict=True)
        ]
    return pd.DataFrame(rows)


def score_sweep(sweep: Sweep, y_test, replicates: int = 1000, seed: int = 0, class_names=None) -> pd.DataFrame:
    """Returns the curve: one row per fraction and metric, with the variation over draws and over test images.

    Columns: fraction, images (mean over draws), draws, metric, value (mean over draws); draw_low, draw_high (lowest and
    highest draw) and draw_sd, the variation over draws; low, high, normal_low, normal_high, the bootstrap over test
    images of the mean over draws. All fractions, and all encoders on the same test images, use the same resamples.
    With one draw this is `stats.evaluate`, as published. `class_names` are for warnings.
    """
    values, replicate = [], []
    for proba in tqdm(sweep.proba, desc="scores", unit="fit", delay=3, leave=False):
        scorer = Scorer(y_test, proba, class_names)  # one at a time: all of them would not fit in memory
        values.append(on_test_set(scorer))
        replicate.append(bootstrap(scorer, scorer.y, replicates, seed))
    values, replicate = np.stack(values), np.stack(replicate, axis=1)
    parts, fractions = [], np.array([subset.fraction for subset in sweep.subsets])
    for fraction in sorted(set(fractions)):
        at = np.flatnonzero(fractions == fraction)
        draws = values[at]
        part = pd.DataFrame(
            {
                "fraction": fraction,
                "images": np.mean([len(sweep.subsets[i].rows) for i in at]),
                "draws": len(at),
                "metric": METRICS,
                "value": draws.mean(axis=0),
                "draw_low": draws.min(axis=0),
                "draw_high": draws.max(axis=0),
                "draw_sd": draws.std(axis=0, ddof=1) if len(at) > 1 else np.nan,
                **intervals(replicate[:, at].mean(axis=1)),
            }
        )
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def full_scores(curve: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores with all labels in the layout of `stats.evaluate`."""
    columns = ["value", "low", "high", "normal_low", "normal_high"]
    return curve[curve["fraction"] == 1].set_index("metric")[columns]


def side_by_side(labels: Iterable[str], tables: Sequence[pd.DataFrame], metric: str) -> pd.DataFrame:
    """Returns one metric of several curves (or `score_draws`) as one table, the labels in a column encoder_label."""
    labelled = zip(labels, tables, strict=True)
    parts = [table[table["metric"] == metric].assign(encoder_label=label) for label, table in labelled]
    return pd.concat(parts, ignore_index=True)


def record_tables(sweep: Sweep, curve: pd.DataFrame, train_images, test_images, y_test) -> dict[str, pd.DataFrame]:
    """Returns the `extra_tables` of `results.save_record`.

    Args:
        train_images: Names of all training images, in the table's order; test_images: names of the test images.
    """
    smaller = [
        prediction_table(test_images, y_test, proba).assign(fraction=subset.fraction, draw=subset.draw)
        for subset, proba in zip(sweep.subsets[:-1], sweep.proba[:-1], strict=True)
    ]
    predictions = pd.concat(smaller) if smaller else pd.DataFrame(columns=["fraction", "draw", "filename"])
    front = ["fraction", "draw"]
    predictions = predictions[[*front, *[name for name in predictions if name not in front]]]
    tables = (curve, score_draws(sweep, y_test), predictions, _ranks(sweep, np.asarray(train_images)))
    return dict(zip(FILES, tables, strict=True))


def _ranks(sweep: Sweep, images: np.ndarray) -> pd.DataFrame:
    """The images in the order of the fit with all labels, and their rank in each draw."""
    all_rows = sweep.subsets[-1].rows
    table = pd.DataFrame({"image": images[all_rows]})
    for draw in sorted({subset.draw for subset in sweep.subsets}):
        # The largest prefix of the draw's order that was fitted; later ranks were not used.
        order = max((s.rows for s in sweep.subsets if s.draw == draw and s.fraction < 1), key=len, default=all_rows)
        rank = np.full(len(images), -1)
        rank[order] = np.arange(len(order))
        table[f"draw_{draw}"] = rank[all_rows]
    return table


def read_subsets(folder: str | Path) -> dict[tuple[float, int], list[str]]:
    """Returns (fraction, draw) -> names of the training images of each fit of a record, in training order."""
    table = pd.read_csv(Path(folder) / "subsets.csv", dtype={"image": str})
    draws = read_numbers(Path(folder) / "draws.csv")
    subsets = {}
    for fraction, draw, images in draws[["fraction", "draw", "images"]].drop_duplicates().itertuples(index=False):
        rank = table[f"draw_{draw}"].to_numpy()
        order = np.argsort(np.where(rank < 0, len(rank), rank), kind="stable")[: int(images)]
        subsets[fraction, draw] = table["image"].iloc[order if fraction < 1 else slice(None)].tolist()
    return subsets


def read_draw_predictions(folder: str | Path) -> dict[tuple[float, int], tuple[np.ndarray, np.ndarray, list[str]]]:
    """Returns (fraction, draw) -> true labels [N], probabilities [N, K] and image names of every fit of a record."""
    folder = Path(folder)
    table = pd.read_csv(folder / "predictions_draws.csv.gz", dtype=str)
    draws = {
        (float(f), int(d)): parse_predictions(part) for (f, d), part in table.groupby(["fraction", "draw"], sort=False)
    }
    return {**draws, (1.0, 0): read_predictions(folder)}


def read_sweep(folder: str | Path) -> tuple[Sweep, np.ndarray]:
    """Returns the sweep of a record, whose subsets have the right size but not the real rows, and true labels [N].

    Raises:
        ValueError: The fits were not scored on the same test images.
    """
    sizes = read_numbers(Path(folder) / "draws.csv").drop_duplicates(["fraction", "draw"])
    predictions = read_draw_predictions(folder)
    subsets, proba = [], []
    y, _, names = predictions[1.0, 0]
    for fraction, draw, images in sizes[["fraction", "draw", "images"]].itertuples(index=False):
        if predictions[fraction, draw][2] != names or (predictions[fraction, draw][0] != y).any():
            raise UserError(
                f"{folder}: test images of fraction {fraction}, draw {draw} are not those of predictions.csv; delete "
                "the folder and repeat the run"
            )
        subsets.append(Subset(fraction, draw, np.arange(int(images))))
        proba.append(predictions[fraction, draw][1])
    return Sweep(tuple(subsets), tuple(proba), pd.DataFrame()), y


def read_curves(scores: pd.DataFrame, file: str = "curve.csv") -> pd.DataFrame:
    """Returns a table of each record of `paper_scores`, concatenated, with columns that identify the run.

    Args:
        scores: Rows of `paper_scores`, several per run.
        file: "curve.csv" or "draws.csv".
    """
    identity = [c for c in ("run_id", "dataset", "encoder", "dataset_label", "encoder_label") if c in scores]
    runs = scores[scores["headline"]] if len(scores) else scores
    parts = [
        read_numbers(Path(run["folder"]) / file).assign(
            **run[identity], headline=lambda table, metric=run["metric"]: table["metric"] == metric
        )
        for _, run in runs.iterrows()
    ]
    if parts:
        return pd.concat(parts, ignore_index=True)
    columns = ["fraction", "images", "draw", "draws", "metric", "value", "draw_low", "draw_high", "draw_sd"]
    return pd.DataFrame(columns=[*identity, *columns, "low", "high", "headline"]).astype({"headline": bool})


def label_efficiency_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per dataset and encoder, one column per fraction; cells `mean ± sd over draws [low, high]`.

    Args:
        curves: Rows of `read_curves`, one metric per dataset.
    """
    numbers = curves[["value", "draw_sd", "low", "high"]].astype(float).itertuples(index=False)
    text = [f"{v:.3f}{'' if np.isnan(sd) else f' ± {sd:.3f}'} [{low:.3f}, {high:.3f}]" for v, sd, low, high in numbers]
    index = ["dataset_label", "encoder_label", "metric"]
    cells = curves.assign(text=text).pivot(index=index, columns="fraction", values="text")
    cells = cells.reindex(index=pd.MultiIndex.from_frame(curves[index].drop_duplicates()))
    cells.columns = [f"{100 * fraction:g}%" for fraction in cells.columns]
    return cells.fillna("").rename_axis(index=["Dataset", "Encoder", "metric"]).reset_index()


def read_numbers(path: Path) -> pd.DataFrame:
    """Returns a table of a record with the exact numbers that were written."""
    table = pd.read_csv(path, dtype=str)  # parsed by Python, to restore exact numbers
    kinds = {"metric": str, "draw": int, "draws": int}
    return table.astype({column: kinds.get(column, float) for column in table})


def recompute_sweep(record: dict, folder: Path) -> Iterator[Pair]:
    """Yields the metrics with all labels, then of every fraction and draw (draws.csv), then the curve (curve.csv)."""
    sweep, y = read_sweep(folder)
    curve = score_sweep(sweep, y, **resampling(record))
    yield from compare_metrics(record["metrics"], full_scores(curve))
    for file, again in (("draws.csv", score_draws(sweep, y)), ("curve.csv", curve)):
        keys = [name for name in ("fraction", "draw", "metric") if name in again]
        stored = read_numbers(folder / file)
        numbers = [name for name in stored.columns if name not in (*keys, "images", "draws")]
        both = stored.merge(again, on=keys, how="outer", suffixes=("", "_again"))
        for row in both.to_dict(orient="records"):
            draw = f", draw {row['draw']}" if "draw" in row else ""
            name = f"{row['metric']} of {row['fraction']:.0%}{draw} ({file})"
            for column in numbers:
                yield name, column, row[column], row[f"{column}_again"]
