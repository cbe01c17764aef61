"""The label fraction at which an encoder reaches a score, read off its curve over label fractions.

By chance, a curve of few points is not quite monotone. So it is replaced by its isotonic regression (a running maximum
would follow every lucky draw and underestimate the data needed), then interpolated linearly in the logarithm of the
fraction, where scores grow most evenly. The result is where this line first reaches the score. The interval is over
the same result for each draw's own curve.

Symbols: R draws, F fractions.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.isotonic import isotonic_regression

from panderm_utils.messages import UserError

LEVEL = 0.95
REACHED, NOT_REACHED, BELOW = "reached", "not reached", "below the smallest fraction"


@dataclass(frozen=True)
class DataNeeded:
    """The label fraction that an encoder needs to reach a score.

    Attributes:
        state: REACHED, NOT_REACHED (even with all labels), or BELOW (exceeded already at the smallest fraction).
        fraction: The label fraction; the smallest one studied if BELOW, infinity if NOT_REACHED.
        low, high: The central 95% of the draws (all of them if fewer than 40); 0 means below the smallest fraction,
            infinity not reached.
        target: The score to reach; score: the encoder's own with all labels.
        draws: Number of draws; a single one has no interval.
        smallest: The smallest fraction studied.
    """

    state: str
    fraction: float
    low: float
    high: float
    target: float
    score: float
    draws: int
    smallest: float


Match = tuple[DataNeeded, str, str]  # the data that an encoder (label) needs to match another (label)


def data_needed(values, fractions, target: float) -> DataNeeded:
    """Returns the label fraction at which a curve reaches a score.

    Args:
        values: Scores [R, F] of each draw and fraction.
        fractions: The fractions in rising order, [F], or each draw's own [R, F], which differ with whole groups; of
            equal ones, which are the same subset, the first is used.
        target: The score to reach, such as another encoder's with all labels.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    fractions = np.broadcast_to(np.asarray(fractions, dtype=float), values.shape)
    if (np.diff(fractions) < 0).any() or fractions.min() <= 0:
        raise ValueError(f"fractions must rise and be above 0, got {fractions[0].tolist()}")
    if not np.isfinite(values).all() or not np.isfinite(target):
        raise UserError("a score is NaN, so the curve cannot be read: is there a class without a test image?")
    of_draws = np.sort([crossing(row, at, target) for row, at in zip(values, fractions, strict=True)])
    tail = (1 - LEVEL) / 2 * (len(of_draws) - 1)
    low, high = of_draws[int(np.floor(tail))], of_draws[int(np.ceil(len(of_draws) - 1 - tail))]
    mean, at = values.mean(axis=0), fractions.mean(axis=0)
    fraction = crossing(mean, at, target)
    state = BELOW if fraction == 0 else REACHED if np.isfinite(fraction) else NOT_REACHED
    fraction = at[0] if state == BELOW else fraction
    return DataNeeded(
        state, float(fraction), float(low), float(high), float(target), float(mean[-1]), len(values), float(at[0])
    )


def crossing(values: np.ndarray, fractions: np.ndarray, target: float) -> float:
    """Returns where one curve [F] first reaches a score: 0 if below the smallest fraction, infinity if nowhere."""
    first = np.append(True, np.diff(fractions) > 0)
    values, fractions = np.asarray(values)[first], np.asarray(fractions)[first]
    curve = isotonic_regression(values)
    after = int(np.searchsorted(curve, target))
    if after == len(curve):
        return np.inf
    if after == 0:
        return 0.0 if curve[0] > target else float(fractions[0])
    part = (target - curve[after - 1]) / (curve[after] - curve[after - 1])
    return float(fractions[after - 1] * (fractions[after] / fractions[after - 1]) ** part)


def percent(fraction: float) -> str:
    """Returns a fraction as percent without the sign: an integer from 10 up, else two digits."""
    return f"{100 * fraction:.0f}" if fraction >= 0.0995 else f"{100 * fraction:.2g}"


def with_interval(needed: DataNeeded) -> str:
    """Returns the fraction and its interval: "12% [9-16]"; an end outside the fractions studied is "<5" or ">100"."""
    if needed.state == NOT_REACHED:
        return "not reached"
    below = f"<{percent(needed.smallest)}"
    fraction = f"{below}%" if needed.state == BELOW else f"{percent(needed.fraction)}%"
    ends = [below if end == 0 else ">100" if np.isinf(end) else percent(end) for end in (needed.low, needed.high)]
    return fraction if needed.draws == 1 or ends == [below, below] else f"{fraction} [{ends[0]}-{ends[1]}]"


def sentence(needed: DataNeeded, encoder: str, rival: str) -> str:
    """Returns e.g. "PanDerm (large) with 12% [9-16] of the labels matches DINOv2 (large) with all"."""
    if needed.state == NOT_REACHED:
        scores = f"{needed.score:.3f} against {needed.target:.3f}"
        return f"{encoder} does not reach {rival}, each with all of the labels ({scores})"
    if needed.state == BELOW:
        fraction = f"less than {percent(needed.smallest)}% of the labels, the smallest fraction studied,"
        return f"{encoder} with {fraction} matches {rival} with all"
    return f"{encoder} with {with_interval(needed)} of the labels matches {rival} with all"


def compare(draws: pd.DataFrame, encoder: str, rival: str) -> DataNeeded:
    """Returns the data that an encoder needs to reach another's score with all labels, on one dataset and metric.

    Args:
        draws: Columns encoder_label, fraction, draw, images, value: one row per fraction and draw.
    """
    target = draws[(draws["encoder_label"] == rival) & (draws["fraction"] == 1)]["value"].mean()
    own = draws[draws["encoder_label"] == encoder]
    # All labels are a single draw, shared by all.
    values, images = (own.pivot(index="draw", columns="fraction", values=c).ffill() for c in ("value", "images"))
    return data_needed(values.to_numpy(), images.to_numpy() / images[1.0].max(), target)


def find_match(draws: pd.DataFrame, encoder: str | None = None, rival: str | None = None) -> Match | None:
    """Returns `compare` with both labels, for a sentence or a figure; None if either encoder has no curve.

    Args:
        encoder, rival: Labels; by default the encoders with the best and the next best score with all labels.
    """
    full = draws[draws["fraction"] == 1].sort_values("value", ascending=False, kind="stable")
    best = [name for name in full["encoder_label"] if name not in (encoder, rival)]
    encoder = encoder or next(iter(best), None)
    rival = rival or next((name for name in best if name != encoder), None)
    if encoder == rival or not {encoder, rival} <= set(full["encoder_label"]):
        return None
    return compare(draws, encoder, rival), encoder, rival


def match_sentences(matches: dict[str, Match | None]) -> pd.DataFrame:
    """Returns one sentence per dataset that has a match."""
    rows = [{"Dataset": name, "answer": sentence(*match)} for name, match in matches.items() if match]
    return pd.DataFrame(rows, columns=["Dataset", "answer"])


def data_needed_table(draws: pd.DataFrame) -> pd.DataFrame:
    """Returns the data needed for each dataset and pair of encoders; `matches` is the encoder whose score is reached.

    Args:
        draws: As in `compare`, plus dataset_label and metric; one metric per dataset.
    """
    rows = []
    for dataset, cells in draws.groupby("dataset_label", sort=False):
        names = list(dict.fromkeys(cells["encoder_label"]))
        total = cells.loc[cells["fraction"] == 1, "images"].max()
        for encoder, rival in ((one, other) for one in names for other in names if one != other):
            needed = compare(cells, encoder, rival)
            rows.append(
                {
                    "Dataset": dataset,
                    "Encoder": encoder,
                    "matches": rival,
                    "metric": cells["metric"].iloc[0],
                    "score to reach": round(needed.target, 4),
                    "labels needed": with_interval(needed),
                    "images needed": round(needed.fraction * total) if needed.state == REACHED else pd.NA,
                    "of images": int(total),
                    "state": needed.state,
                }
            )
    columns = ["Dataset", "Encoder", "matches", "metric", "score to reach", "labels needed", "images needed"]
    return pd.DataFrame(rows, columns=[*columns, "of images", "state"]).astype({"images needed": "Int64"})
