"""What the report of own data shows of one dataset: sections of exhibits, drawn from its records alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from panderm_utils import figures, protocols, results, stats
from panderm_utils.data import Dataset, leakage_table
from panderm_utils.figures import METRIC_TITLES, Exhibit
from panderm_utils.manifests import SPLITS, DatasetManifest, Protocol, load_profile
from panderm_utils.report.gallery import Gallery, sample_gallery, worst_mistakes_gallery

# What a metric says, to a reader who does not use it every day.
MEANINGS = {
    "accuracy": "The fraction of test images whose class is predicted correctly. Frequent classes dominate it.",
    "balanced_accuracy": "The fraction predicted correctly within each class, averaged over the classes: a rare class "
    "counts as much as a frequent one.",
    "quadratic_kappa": "Agreement with the labels beyond chance, where errors between distant classes count more: "
    "meaningful for ordered classes only.",
    "weighted_f1": "The balance of finding a class and being right about it, averaged over the classes by their number "
    "of images; 1 is perfect.",
    "auroc": "How often an image of a class gets a higher probability of that class than an image of another; 0.5 is "
    "chance, and no threshold is involved.",
    "aupr": "The precision over all sensitivities, averaged; chance is the frequency of the class.",
    "top3": "The correct class is among the three most probable ones.",
    "top5": "The correct class is among the five most probable ones.",
    "specificity": "The fraction of images of other classes that are not taken for a class, averaged over the classes.",
}


@dataclass
class Section:
    """A part of the page. `folded`: shown on request only."""

    anchor: str
    title: str
    words: str = ""
    exhibits: list[Exhibit | Gallery] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True)
class Study:
    """The runs of one dataset that a report shows.

    Attributes:
        card: The dataset's manifest.
        classifiers: Protocol -> rows of `results.study_runs`, of protocols whose runs score a classifier.
        others: The same of all other protocols.
    """

    card: DatasetManifest
    classifiers: dict[Protocol, pd.DataFrame]
    others: dict[Protocol, pd.DataFrame]

    @property
    def headlines(self) -> pd.DataFrame:
        """One row per classifier: its headline metric; the first is the study's main result."""
        rows = [scores[scores["headline"]] for scores in self.classifiers.values()]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()

    @property
    def ids(self) -> list[str]:
        return [
            name for scores in (*self.classifiers.values(), *self.others.values()) for name in scores["run_id"].unique()
        ]


def read_study(card: DatasetManifest, runs: pd.DataFrame, profile: str) -> Study:
    """Returns a dataset's study; `runs` are rows of `results.read_records`."""
    runs = runs[runs["dataset"] == card.name]
    parts: tuple[dict, dict] = {}, {}
    order = list(load_profile(profile).protocols)
    names = [name for name in protocols.list_protocols() if name in set(runs["protocol"])]
    for protocol in map(protocols.load_protocol, sorted(names, key=lambda n: (n not in order, (*order, n).index(n)))):
        parts[protocol.exhibits is not None][protocol] = results.study_runs(runs, profile, protocol)
    return Study(card, *parts)


def make_sections(study: Study, record: dict, dataset: Dataset | None) -> Iterator[Section]:
    """Yields the sections of a study, in the order of the page.

    Args:
        record: That of its first run.
        dataset: The data, from which images are shown; None if they are gone.
    """
    yield Section("data", "The images", exhibits=list(_data(study, record, dataset)))
    if study.classifiers:
        yield Section("scores", "Scores", _scores_words(record), [_scores(study)])
    for i, (protocol, scores) in enumerate(study.classifiers.items()):
        headline = scores[scores["headline"]].reset_index(drop=True)
        for run in headline.to_dict(orient="records"):
            title = f"{protocol.title.capitalize()} of {run['encoder_label']}"
            shown = [*_classifier(study.card, run), *([worst_mistakes_gallery(dataset, run)] if dataset else [])]
            yield Section(f"run-{run['run_id']}", title, exhibits=shown, folded=i > 0)
        kinds = list(_calibration(protocol, headline)) + list(_subgroups(protocol, headline, scores))
        title = f"{protocol.title.capitalize()}: operating points, calibration, subgroups"
        yield Section(f"clinic-{protocol.name}", title, exhibits=kinds, folded=i > 0)
    if comparisons := list(_comparisons(study)):
        yield Section("compared", "Compared on the same test images", exhibits=comparisons)
    for protocol, scores in study.others.items():
        yield Section(protocol.name, protocol.title.capitalize(), exhibits=protocol.exhibits(scores, dataset))


def _data(study: Study, record: dict, dataset: Dataset | None) -> Iterator[Exhibit | Gallery]:
    sizes = record["data"]["split_sizes"]
    counts = pd.DataFrame(record["data"].get("class_counts"), index=[c.long_name for c in study.card.classes])
    counts = counts.reindex(columns=SPLITS)
    table = counts.copy()
    table.loc["all"] = [sizes[split] for split in SPLITS]
    table["all"] = table.sum(axis=1)
    words = (
        f"The model learns from the {sizes['train']:,} images of *train* and is scored on the {sizes['test']:,} of "
        f"*test*, which it never saw; *val* ({sizes['val']:,}) serves to choose an epoch in training."
    )
    alt = "; ".join(f"{name}: " + ", ".join(f"{s} {n}" for s, n in row.items()) for name, row in counts.iterrows())
    if dataset:
        yield sample_gallery(dataset)
    title = "Images of each class and split" if study.card.classes else "Images of each split"
    yield Exhibit("splits", title, words, table=table.rename_axis("class").reset_index())
    if study.card.classes:
        figure = figures.class_counts(counts)
        yield Exhibit("class_counts", "Class frequencies", "On a logarithmic axis.", figure, alt=alt)
    if dataset:
        leaks = leakage_table(dataset).reset_index().drop(columns="example")
        words = (
            "An image, lesion or patient in two splits inflates the score, since the model has seen it. A kind without "
            "a column in the data cannot be checked."
        )
        yield Exhibit("leakage", "Leakage between the splits", words, table=leaks)


def _scores_words(record: dict) -> str:
    replicates = record["settings"].get("replicates", "")
    return (
        f"On the {record['scored']['images']:,} test images. In brackets: 95% intervals from {replicates} bootstrap "
        "resamples: how much a score would move with other test images *of the same kind*. They say nothing about "
        "other clinics, cameras or patients."
    )


def _scores(study: Study) -> Exhibit:
    """The metrics of every classifier side by side, with what each means."""
    columns = {}
    for protocol, scores in study.classifiers.items():
        labels = study.headlines["encoder_label"]
        for label, rows in scores.groupby("encoder_label", sort=False):
            cells = rows.set_index("metric")[["value", "low", "high"]]
            columns[f"{protocol.title.capitalize()}{f', {label}' if labels.nunique() > 1 else ''}"] = {
                metric: "undefined" if pd.isna(v) else f"{v:.3f} [{low:.3f}, {high:.3f}]"
                for metric, v, low, high in cells.itertuples()
            }
    table = pd.DataFrame(columns).reindex([metric for metric in MEANINGS if metric in METRIC_TITLES]).dropna(how="all")
    table = table.fillna("–").reset_index(names="metric")
    table["what it means"] = table["metric"].map(MEANINGS)
    main = study.headlines.iloc[0]["metric"]
    words = f"**{METRIC_TITLES[main]}** is the headline metric, as in the paper of PanDerm for this number of classes."
    table["metric"] = table["metric"].map(METRIC_TITLES)
    return Exhibit("scores", "All metrics", words, table=table, records=tuple(study.headlines["run_id"]))


def _classifier(card: DatasetManifest, run: dict) -> Iterator[Exhibit]:
    """Yields the confusion matrix, per-class table and curves of one run."""
    y, proba, _ = results.read_predictions(run["folder"])
    names, ids, key = [c.long_name for c in card.classes], (run["run_id"],), run["run_id"]
    counts = stats.confusion(y, proba)
    wrong = counts - np.diag(counts.diagonal())
    true, guess = np.unravel_index(wrong.argmax(), wrong.shape)
    words = f"{counts.diagonal().sum():,} of {len(y):,} test images are on the diagonal: predicted correctly."
    if wrong.any():
        words += f" The most frequent error: {names[true]} taken for {names[guess]}, {wrong.max():,} times."
    figure = figures.confusion_matrix(counts, names)
    yield Exhibit(f"confusion-{key}", "Confusion matrix", words, figure, alt=words, records=ids)
    report = stats.per_class_report(y, proba, names).reset_index()
    numbers = {
        name: ["–" if v != v else f"{v:.3f}" for v in report[name]] for name in report if report[name].dtype == float
    }
    words = (
        "*Recall* (sensitivity): the fraction of the class that is found. *Precision*: the fraction of such "
        "predictions that are right. *Support*: its test images; with fewer than 20, take the numbers as a hint."
    )
    yield Exhibit(f"classes-{key}", "Class by class", words, table=report.assign(**numbers), records=ids)
    roc, pr = stats.roc_curves(y, proba, names), stats.pr_curves(y, proba, names)
    words = (
        "Left: the fraction found against the fraction of false alarms, over all thresholds; dotted: chance. "
        "Right: the fraction of alarms that are right, against the fraction found."
    )
    alt = "; ".join(f"{name}: AUROC {curve[2]:.3f}, average precision {pr[name][2]:.3f}" for name, curve in roc.items())
    yield Exhibit(
        f"curves-{key}", "ROC and precision-recall", words, figures.roc_pr_curves(roc, pr), alt=alt, records=ids
    )


def _calibration(protocol: Protocol, headline: pd.DataFrame) -> Iterator[Exhibit]:
    """Yields operating points, and how far the probabilities can be taken at their word."""
    ids, key = tuple(headline["run_id"]), protocol.name
    points = results.operating_points_of_records(headline)
    shown = _without_constants(figures.points_table(points))
    words = "A threshold chosen so that one of the two rates is at least the level; the other one is then as follows."
    if len(found := points[(points["given"] == "specificity") & (points["level"] == 0.9)].dropna(subset=["value"])):
        worst = found.loc[found["value"].idxmin()]
        least = ", the least of all classes" if found["class"].nunique() > 1 else ""
        words += f" If 90% of all others are to be left alone, {worst['value']:.0%} of *{worst['class']}* are found"
        words += f"{least}."
    words += " The thresholds are chosen on the test images, so a clinic's will be a little worse."
    yield Exhibit(f"points-{key}", "Sensitivity and specificity", words, table=shown, records=ids)
    bins, numbers = results.calibration_of_records(headline)
    first = numbers.iloc[0]
    verdict = "more than" if first["ece"] > first["ece_by_chance"] else "no more than"
    words = (
        "Does 80% mean 80%? On the dotted line it does; below it the model is overconfident. The expected calibration "
        f"error is {first['ece']:.3f}, {verdict} a perfectly calibrated model would show by chance on as few images "
        f"({first['ece_by_chance']:.3f})."
    )
    figure = figures.reliability_diagrams(bins, numbers, figures.encoder_colors(headline))
    alt = figures.calibration_alt_text(numbers)
    yield Exhibit(f"calibration-{key}", "Calibration", words, figure, alt=alt, records=ids)


def _subgroups(protocol: Protocol, headline: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Exhibit]:
    """Yields the scores by age, sex, site, ..., of the first encoder, if its records hold any of them."""
    main = headline[headline["encoder"] == headline["encoder"].iloc[0]]
    groups, gaps, _ = results.subgroups_of_records(main)
    if groups.empty:
        return
    color = figures.encoder_colors(main)[main["encoder_label"].iloc[0]]
    figure = figures.subgroup_panels(groups, gaps, main, color)
    words = (
        "The headline metric in groups of patients. Grey: too few images to judge. The largest gap was selected for "
        "being the largest; *p* says how often chance alone gives one as large."
    )
    ids, alt = tuple(main["run_id"]), figures.subgroups_alt_text(groups, gaps)
    yield Exhibit(f"subgroups-{protocol.name}", "Subgroups", words, figure, alt=alt, records=ids)
    table = figures.groups_table(groups).drop(columns=["Dataset", "Metric"])
    yield Exhibit(f"groups-{protocol.name}", "Every group", "", table=table, records=ids)


def _comparisons(study: Study) -> Iterator[Exhibit]:
    """Yields every pair of protocols of classifiers, compared image by image."""
    for sides in combinations(study.classifiers, 2):
        pairs = results.compare_protocols(*(study.classifiers[side] for side in sides), sides)
        headline = pairs[pairs["headline"]]
        if headline.empty:
            continue
        one = headline.iloc[0]
        words = (
            f"{sides[1].title.capitalize()} minus {sides[0].title}: {one['difference']:+.3f} "
            f"[{one['low']:+.3f}, {one['high']:+.3f}] in {METRIC_TITLES[one['metric']]}: {one['verdict']}. An interval "
            "that excludes 0 decides; a wide one around 0 means that the test split is too small to tell."
        )
        ids = (*headline[f"{sides[0].name}_run"], *headline[f"{sides[1].name}_run"])
        key = "-".join(side.name for side in sides)
        title = f"{sides[1].title.capitalize()} against {sides[0].title}"
        figure = figures.protocol_differences(headline, sides, figures.encoder_colors(headline))
        yield Exhibit(f"compared-{key}", title, words, figure, alt=words, records=ids)
        table = figures.differences_table(pairs).drop(columns="Dataset")
        table = figures.upright(table, ["Encoder"], "metric", "difference")
        yield Exhibit(f"differences-{key}", "The difference in every metric", "", table=table, records=ids)


def _without_constants(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table without the columns that name the dataset, and the encoder if there is only one."""
    return table.drop(columns=["Dataset", *(["Encoder"] if table["Encoder"].nunique() == 1 else [])])
