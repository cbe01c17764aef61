"""The label-efficiency study: one probe a subset of the training labels, all on features that were extracted once.

    sweep = sweep_probes(train.x, train.y, test.x, drawn, num_classes)   a probe each fraction and draw
    curve = score_sweep(sweep, test.y)                                   mean, spread over draws, bootstrap interval

Each fit starts anew: where a solver stops depends on where it starts, so a warm start would make a result depend on
the fits before it. The fit with all labels is the same for all draws and done once.

A record (`records`) of this protocol holds, beside predictions.csv with the predictions of all labels:

    curve.csv                  a row a fraction and metric
    draws.csv                  a row a fraction, draw and metric
    predictions_draws.csv.gz   the predictions of every smaller fraction and draw
    subsets.csv                the training images, in the order of the fit with all, and each one's place in each draw,
                               from 0 (-1: in no smaller fraction): a subset is the first places, as many as it has

Symbols: N test images, K classes, R replicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.manifests import Pair
from panderm_utils.protocols.label_efficiency.subsets import Subset
from panderm_utils.protocols.linear_probe import fit_linear_probe
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
        subsets: Those of `subsets.draw_subsets`, all labels last.
        proba: Class probabilities [N, K] of the test images, one array a subset.
        fits: What each fit says of itself (`LinearProbe.describe`), with its fraction, draw, images and seconds.
    """

    subsets: tuple[Subset, ...]
    proba: tuple[np.ndarray, ...]
    fits: pd.DataFrame

    @property
    def full(self) -> np.ndarray:
        """The predictions [N, K] with all labels."""
        return self.proba[-1]


def sweep_probes(
    x, y, x_test, subsets: Sequence[Subset], num_classes: int, seed: int = 0, solver: str = "converged"
) -> Sweep:
    """Fits a linear probe on each subset of the training rows and predicts the test images with it.

    Args:
        x: Features [n, D] of all training images, in the table's order; y their labels [n].
        x_test: Features [N, D] of the test images.
        solver: As `fit_linear_probe`. "published" walks upstream's path at every fraction; "converged" finds the
            optimum, in a fraction of the time.

    Raises:
        ProbeError: As `fit_linear_probe`; a published draw with one class only, say.
    """
    x, y, proba, fits = np.asarray(x), np.asarray(y), [], []
    for subset in tqdm(subsets, desc="probes", unit="fit", leave=False):
        probe = fit_linear_probe(x[subset.rows], y[subset.rows], num_classes, seed, solver)
        proba.append(probe.predict_proba(x_test))
        about = {"fraction": subset.fraction, "draw": subset.draw, "images": len(subset.rows)}
        fits.append({**about, **probe.describe(), "seconds": probe.seconds})
    return Sweep(tuple(subsets), tuple(proba), pd.DataFrame(fits))


def draw_scores(sweep: Sweep, y_test) -> pd.DataFrame:
    """Returns every metric of every fraction and draw: fraction, draw, images, metric, value."""
    rows = []
    for subset, proba in zip(sweep.subsets, sweep.proba, strict=True):
        about = {"fraction": subset.fraction, "draw": subset.draw, "images": len(subset.rows)}
        rows += [
            {**about, "metric": m, "value": v} for m, v in zip(METRICS, on_test_set(Scorer(y_test, proba)), strict=True)
        ]
    return pd.DataFrame(rows)


def score_sweep(sweep: Sweep, y_test, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns the curve: a row a fraction and metric, with the two kinds of chance kept apart.

    Columns: fraction, images (mean over draws), draws, metric, value (mean over draws); draw_low and draw_high (the
    lowest and the highest draw) and draw_sd: which images were labelled; low, high, normal_low, normal_high: which
    images were tested, the bootstrap of the mean over draws. All fractions, and all encoders on the same test images,
    see the same resamples. With one draw this is `metrics.evaluate`, the published way.
    """
    values, replicate = [], []
    for proba in tqdm(sweep.proba, desc="scores", unit="fit", delay=3, leave=False):
        scorer = Scorer(y_test, proba)  # one at a time: those of all fits would fill the memory
        values.append(on_test_set(scorer))
        replicate.append(bootstrap(scorer, scorer.y, replicates, seed))
    values, replicate = np.stack(values), np.stack(replicate, axis=1)
    parts, fractions = [], np.array([subset.fraction for subset in sweep.subsets])
    for fraction in sorted(set(fractions)):
        here = np.flatnonzero(fractions == fraction)
        draws = values[here]
        part = pd.DataFrame(
            {
                "fraction": fraction,
                "images": np.mean([len(sweep.subsets[i].rows) for i in here]),
                "draws": len(here),
                "metric": METRICS,
                "value": draws.mean(axis=0),
                "draw_low": draws.min(axis=0),
                "draw_high": draws.max(axis=0),
                "draw_sd": draws.std(axis=0, ddof=1) if len(here) > 1 else np.nan,
                **intervals(replicate[:, here].mean(axis=1)),
            }
        )
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def full_scores(curve: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores with all labels as `metrics.evaluate` lays them out."""
    columns = ["value", "low", "high", "normal_low", "normal_high"]
    return curve[curve["fraction"] == 1].set_index("metric")[columns]


def side_by_side(tables: dict[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Returns one metric of several curves (or `draw_scores`) as one table, each under its encoder's label."""
    parts = [table[table["metric"] == metric].assign(encoder_label=label) for label, table in tables.items()]
    return pd.concat(parts, ignore_index=True)


def record_tables(sweep: Sweep, curve: pd.DataFrame, train_images, test_images, y_test) -> dict[str, pd.DataFrame]:
    """Returns the further tables of a record, for `records.save_record(..., more=...)`.

    Args:
        train_images: The names of all training images, in the table's order; test_images those of the test images.
    """
    smaller = [
        prediction_table(test_images, y_test, proba).assign(fraction=subset.fraction, draw=subset.draw)
        for subset, proba in zip(sweep.subsets[:-1], sweep.proba[:-1], strict=True)
    ]
    predictions = pd.concat(smaller) if smaller else pd.DataFrame(columns=["fraction", "draw", "filename"])
    front = ["fraction", "draw"]
    predictions = predictions[[*front, *[name for name in predictions if name not in front]]]
    tables = (curve, draw_scores(sweep, y_test), predictions, _places(sweep, np.asarray(train_images)))
    return dict(zip(FILES, tables, strict=True))


def _places(sweep: Sweep, images: np.ndarray) -> pd.DataFrame:
    """The images in the order of the fit with all, and each one's place in each draw."""
    whole = sweep.subsets[-1].rows
    table = pd.DataFrame({"image": images[whole]})
    for draw in sorted({subset.draw for subset in sweep.subsets}):
        # The largest part of the draw's order that was fitted; places after it were not used.
        order = max((s.rows for s in sweep.subsets if s.draw == draw and s.fraction < 1), key=len, default=whole)
        place = np.full(len(images), -1)
        place[order] = np.arange(len(order))
        table[f"draw_{draw}"] = place[whole]
    return table


def read_subsets(folder: str | Path) -> dict[tuple[float, int], list[str]]:
    """Returns (fraction, draw) -> the names of the training images of each fit of a record, in the order of the fit."""
    table = pd.read_csv(Path(folder) / "subsets.csv", dtype={"image": str})
    draws = read_numbers(Path(folder) / "draws.csv")
    subsets = {}
    for fraction, draw, images in draws[["fraction", "draw", "images"]].drop_duplicates().itertuples(index=False):
        place = table[f"draw_{draw}"].to_numpy()
        order = np.argsort(np.where(place < 0, len(place), place), kind="stable")[: int(images)]
        subsets[fraction, draw] = table["image"].iloc[order if fraction < 1 else slice(None)].tolist()
    return subsets


def read_draw_predictions(folder: str | Path) -> dict[tuple[float, int], tuple[np.ndarray, np.ndarray, list[str]]]:
    """Returns (fraction, draw) -> true labels [N], probabilities [N, K] and image names, of every fit of a record."""
    folder = Path(folder)
    table = pd.read_csv(folder / "predictions_draws.csv.gz", dtype=str)
    read = {
        (float(f), int(d)): parse_predictions(part) for (f, d), part in table.groupby(["fraction", "draw"], sort=False)
    }
    return {**read, (1.0, 0): read_predictions(folder)}


def read_sweep(folder: str | Path) -> tuple[Sweep, np.ndarray]:
    """Returns the sweep of a record, whose subsets know their size but not their rows, and the true labels [N].

    Raises:
        ValueError: The fits were not scored on the same test images.
    """
    sizes = read_numbers(Path(folder) / "draws.csv").drop_duplicates(["fraction", "draw"])
    predictions = read_draw_predictions(folder)
    subsets, proba = [], []
    y, _, names = predictions[1.0, 0]
    for fraction, draw, images in sizes[["fraction", "draw", "images"]].itertuples(index=False):
        if predictions[fraction, draw][2] != names or (predictions[fraction, draw][0] != y).any():
            raise ValueError(f"test images of fraction {fraction}, draw {draw} are not those of predictions.csv")
        subsets.append(Subset(fraction, draw, np.arange(int(images))))
        proba.append(predictions[fraction, draw][1])
    return Sweep(tuple(subsets), tuple(proba), pd.DataFrame()), y


def read_curves(scores: pd.DataFrame, file: str = "curve.csv") -> pd.DataFrame:
    """Returns a table of every record chosen (`tables.paper_scores`), with the columns that say whose it is.

    Args:
        scores: Rows of `records.read_records`, several a run.
        file: "curve.csv" or "draws.csv".
    """
    about = [c for c in ("run_id", "dataset", "encoder", "dataset_label", "encoder_label") if c in scores]
    runs = scores[scores["headline"]] if len(scores) else scores
    parts = [
        read_numbers(Path(run["folder"]) / file).assign(
            **run[about], headline=lambda table, metric=run["metric"]: table["metric"] == metric
        )
        for _, run in runs.iterrows()
    ]
    if parts:
        return pd.concat(parts, ignore_index=True)
    columns = ["fraction", "images", "draw", "draws", "metric", "value", "draw_low", "draw_high", "draw_sd"]
    return pd.DataFrame(columns=[*about, *columns, "low", "high", "headline"]).astype({"headline": bool})


def label_efficiency_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row a dataset and encoder, a column a fraction, each cell `mean ± sd over draws [low, high]`.

    Args:
        curves: One metric a dataset, of `read_curves`.
    """
    numbers = curves[["value", "draw_sd", "low", "high"]].astype(float).itertuples(index=False)
    text = [f"{v:.3f}{'' if np.isnan(sd) else f' ± {sd:.3f}'} [{low:.3f}, {high:.3f}]" for v, sd, low, high in numbers]
    index = ["dataset_label", "encoder_label", "metric"]
    cells = curves.assign(text=text).pivot(index=index, columns="fraction", values="text")
    cells = cells.reindex(index=pd.MultiIndex.from_frame(curves[index].drop_duplicates()))
    cells.columns = [f"{100 * fraction:g}%" for fraction in cells.columns]
    return cells.fillna("").rename_axis(index=["Dataset", "Encoder", "metric"]).reset_index()


def read_numbers(path: Path) -> pd.DataFrame:
    """The table of a record, every number the very one that was written."""
    table = pd.read_csv(path, dtype=str)  # parsed from text by Python's own rule, as in `records`
    numbers = {column: float for column in table if column != "metric"}
    whole = {column: int for column in table if column in ("draw", "draws")}
    return table.astype(numbers).astype(whole)


def recompute_sweep(record: dict, folder: Path) -> Iterator[Pair]:
    """Yields the metrics of all labels, then of every fraction and draw (draws.csv) and their curve (curve.csv)."""
    sweep, y = read_sweep(folder)
    curve = score_sweep(sweep, y, **resampling(record))
    yield from compare_metrics(record["metrics"], full_scores(curve))
    for file, again in (("draws.csv", draw_scores(sweep, y)), ("curve.csv", curve)):
        keys = [name for name in ("fraction", "draw", "metric") if name in again]
        stored = read_numbers(folder / file)
        numbers = [name for name in stored.columns if name not in (*keys, "images", "draws")]
        both = stored.merge(again, on=keys, how="outer", suffixes=("", "_again"))
        for row in both.to_dict(orient="records"):
            draw = f", draw {row['draw']}" if "draw" in row else ""
            what = f"{row['metric']} of {row['fraction']:.0%}{draw} ({file})"
            for column in numbers:
                yield what, column, row[column], row[f"{column}_again"]
