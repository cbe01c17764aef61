"""Manifests: what is on disk loads and says what the fact sheet says; what is wrong is problem_lines all at once."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

from panderm_utils.manifests import ManifestError
from panderm_utils.manifests import reading as manifests
from panderm_utils.workspace import PROFILES

ROOT = Path(__file__).parents[2]
DRIVE = "https://drive.google.com/file/d/{}/view"
SHIPPED = [name for name in manifests.list_datasets() if not manifests.load_dataset_manifest(name).own]

# The facts, restated: CSV, image root, id of upstream's archive, classes, headline metric, and what is not verified.
FACTS = {
    "ham10000": (
        "HAM10000_clean/ISIC2018_splits/HAM_clean.csv",
        "HAM10000_clean/ISIC2018",
        "1D9Q4B50Z5tyj5fd5EE9QWmFrg66vGvfA",
        "akiec bcc bkl df mel nv vasc",
        "licence",
    ),
    "bcn20000": (
        "BCN20000/bcn20000.csv",
        "BCN20000/images",
        "1jn1h1jWjd4go7BQ5fFWMRBMtq7poSlfi",
        "nv mel bcc sk ak sl scc df vasc",
        "classes melanoma split_sizes image_suffix licence groups metadata population",
    ),
    "mskcc": (
        "MSKCC/mskcc.csv",
        "MSKCC/images",
        "17ma4tREXHAq1ZcBT7lZBhwO-3UHSbDW2",
        "other mel",
        "classes melanoma split_sizes image_suffix licence references groups metadata",
    ),
    "hiba": (
        "HIBA/hiba.csv",
        "HIBA/images",
        "1Sg0gFhfBaNNoeunF7C0HZgDbp5EDV436",
        "other mel",
        "classes melanoma split_sizes modality image_suffix licence groups metadata collection",
    ),
    "pad_ufes": (
        "pad-ufes/2000.csv",
        "pad-ufes/images",
        "1NLv0EH3QENuRxW-_-BSf4KMP9cPjBk9o",
        "nev bcc ack sek scc mel",
        "classes melanoma institution licence image_suffix population",
    ),
    "ddi": (
        "DDI/ddi_clean.csv",
        "DDI/images",
        "1F5RVqBUIxYcub1OkBm6yHTyV2TkHc65B",
        "benign malignant",
        "classes split_sizes institution licence metadata population",
    ),
    "derm7pt_clinical": (
        "Derm7pt/atlas-clinical-all.csv",
        "Derm7pt/images",
        "1OYAmqG93eWLdf7dIkulY_fr0ZScvRLRg",
        "other mel",
        "classes melanoma split_sizes image_suffix institution licence groups metadata collection labelling population",
    ),
    "derm7pt_dermoscopic": (
        "Derm7pt/atlas-dermato-all.csv",
        "Derm7pt/images",
        "1OYAmqG93eWLdf7dIkulY_fr0ZScvRLRg",
        "other mel",
        "classes melanoma split_sizes csv image_suffix institution licence groups metadata collection labelling"
        " population",
    ),
    "dermnet": (
        "Dermnet/dermnet.csv",
        "Dermnet/images",
        "1WrvReon2gA3sF9rqQGqivglG7HLFJ8he",
        "pigment acne warts sk bacterial contact vasculitis urticaria melanoma eczema herpes scabies fungal malignant"
        " atopic lupus psoriasis nail exanthem hair systemic vascular bullous",
        "classes split_sizes image_suffix institution licence collection labelling population",
    ),
    "patch16": (
        "WSI_patch_data/patch.csv",
        "WSI_patch_data/images",
        "1wDMIfYrQatkeADoneHgjXQrawVMK-TFL",
        "necrosis muscle sweat vessel elastosis cartilage hair epidermis nerves subcutis dermis sebaceous sqcc melanoma"
        " bcc naevus",
        "classes split_sizes licence",
    ),
    "ph2": (
        "PH2/ph2.csv",
        "PH2/images",
        "",
        "nv mel",
        "classes institution csv image_root image_suffix licence collection population",
    ),
    "med_node": (
        "MED-NODE/med_node.csv",
        "MED-NODE/images",
        "",
        "naevus melanoma",
        "classes institution class_counts csv image_root licence collection labelling population",
    ),
}
# Which classes are melanoma. Not of DDI (malignant), DermNet (melanoma with nevi) and PATCH16 (pathology).
MELANOMA = {
    **dict.fromkeys(("ham10000", "demo", "bcn20000", "mskcc", "hiba", "pad_ufes", "ph2"), ("mel",)),
    **dict.fromkeys(("derm7pt_clinical", "derm7pt_dermoscopic"), ("mel",)),
    "med_node": ("melanoma",),
}
# Split sizes, and images a class in label order, of the datasets where they are known.
SIZES = {
    "ham10000": {"train": 8207, "val": 575, "test": 1232},
    "pad_ufes": {"train": 1493, "val": 344, "test": 461},
    "ddi": {"train": 427, "val": 83, "test": 137},
    "ph2": {"test": 200},
    "med_node": {"test": 170},
}
COUNTS = {
    "ham10000": {
        "train": (273, 448, 941, 102, 1021, 5304, 118),
        "val": (19, 22, 50, 5, 22, 450, 7),
        "test": (35, 44, 107, 8, 70, 951, 17),
    },
    "pad_ufes": {"train": (174, 543, 464, 154, 123, 35)},
    "ddi": {"test": (108, 29)},
    "ph2": {"test": (160, 40)},
    "med_node": {"test": (100, 70)},
}
DOIS = {
    "ham10000": "10.1038/sdata.2018.161",
    "bcn20000": "10.1038/s41597-024-03387-w",
    "mskcc": "10.1109/ISBI.2018.8363547",
    "hiba": "10.1038/s41597-023-02630-0",
    "pad_ufes": "10.1016/j.dib.2020.106221",
    "ddi": "10.1126/sciadv.abq6147",
    "derm7pt_clinical": "10.1109/JBHI.2018.2824327",
    "derm7pt_dermoscopic": "10.1109/JBHI.2018.2824327",
    "patch16": "10.3389/fonc.2022.1022967",
    "ph2": "10.1109/EMBC.2013.6610779",
    "med_node": "10.1016/j.eswa.2015.04.034",
}
LICENCES = {
    "ham10000": "CC BY-NC 4.0",
    "bcn20000": "sources conflict",
    "mskcc": "CC-0, CC BY or CC BY-NC",
    "hiba": "CC BY 4.0",
    "pad_ufes": "CC BY 4.0",
    "ddi": "Stanford Research Use Agreement: non-commercial research, no redistribution, no derivatives",
    "derm7pt_clinical": "not seen",
    "derm7pt_dermoscopic": "not seen",
    "dermnet": "not established",
    "patch16": "CC BY (version not confirmed)",
    "ph2": "no redistribution",
    "med_node": "CC BY 4.0 in one survey",
}
# What must be said of a dataset, since it changes what a score means.
CAVEATS = {
    "ham10000": ["trainisic", "8,207 rather than 8,208", "7,470 lesions", "DermaMNIST-C"],
    "bcn20000": ["12,413", "18,946"],
    "mskcc": ["8,984"],
    "hiba": ["1,635", "1,270"],
    "pad_ufes": ["56 near-duplicate", "patient"],
    "ddi": ["malignant against benign", "29 test positives"],
    "derm7pt_clinical": ["839", "248 melanoma", "one split"],
    "derm7pt_dermoscopic": ["872", "252 melanoma", "one split"],
    "dermnet": ["near-duplicate leakage", "SwAVDerm", "watermark"],
    "patch16": ["88,971/12,354/28,039", "UAH89k", "55/15/30"],
    "ph2": ["calls it clinical", "no released CSV"],
    "med_node": ["170 images", "no released CSV"],
}
# Of the datasets of masks: an image, its mask, split sizes, the percent of a draw, doi, licence.
HAM_MASKS = (
    "ISIC_0024306.jpg",
    "HAM10000_clean/HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png",
    None,
)
MASKS = {
    "isic2018_task1": (
        "Validation_Data/ISIC_0012255.jpg",
        "ISIC2018/Validation_GroundTruth/ISIC_0012255_segmentation.png",
        {"train": 2594, "val": 100, "test": 1000},
        None,
        "10.48550/arXiv.1902.03368",
        "CC-0",
    ),
    "ham10000_masks": (*HAM_MASKS, (64, 16, 20), "10.1038/s41591-020-0942-0", "CC BY-NC 4.0"),
    "ham10000_masks_70": (*HAM_MASKS, (70, 10, 20), "10.1038/s41591-020-0942-0", "CC BY-NC 4.0"),
}
LINEAR_PROBE = {
    "accuracy": 0.923701,
    "balanced_accuracy": 0.796631,
    "quadratic_kappa": 0.880742,
    "weighted_f1": 0.922471,
    "auroc": 0.977242,
    "aupr": 0.877725,
}
PUBLISHED = {
    ("ham10000", "linear_probe", "panderm_large"): LINEAR_PROBE,
    ("ham10000", "fine_tune", "panderm_large"): {
        "balanced_accuracy": 0.832508,
        "accuracy": 0.853896,
        "weighted_f1": 0.867224,
        "auroc": 0.973904,
        "top3": 0.974838,
        "top5": 0.995942,
        "specificity": 0.974536,
    },
    ("ham10000", "fine_tune", "panderm_base"): {
        "balanced_accuracy": 0.858914,
        "accuracy": 0.884740,
        "weighted_f1": 0.895573,
        "auroc": 0.978108,
        "top3": 0.991883,
        "top5": 0.998377,
    },
    ("pad_ufes", "fine_tune", "panderm_large"): {
        "balanced_accuracy": 0.739719,
        "accuracy": 0.787419,
        "weighted_f1": 0.781612,
        "auroc": 0.956361,
        "top3": 0.978308,
        "top5": 0.997831,
        "specificity": 0.948886,
    },
}


def test_there_is_a_manifest_for_each_dataset_of_the_paper_and_for_the_demo():
    assert set(SHIPPED) == {*FACTS, *MASKS, "demo"}
    assert manifests.check_manifests() >= len(SHIPPED)
    assert set(manifests.load_profile("paper").datasets) - {*MASKS} == set(FACTS)
    assert set(manifests.load_profile("demo").datasets) - {*MASKS} == {*FACTS, "demo"}


@pytest.mark.parametrize("name", MASKS)
def test_a_dataset_of_masks_is_what_the_fact_sheet_says(name):
    card = manifests.load_dataset_manifest(name)
    assert (card.task, card.headline_metric, card.content) == ("segmentation", "jaccard", "lesion masks")
    assert (card.classes, card.label_column, card.melanoma) == ((), "", ())
    image, mask, sizes, percent, doi, licence = MASKS[name]
    assert (card.split_sizes, card.draw and tuple(card.draw.percent.values())) == (sizes, percent)
    split = image.split("_")[0] if card.split_folders else ""
    split = next((one for one, folder in card.split_folders.items() if folder.startswith(split)), "train")
    assert f"{card.masks.root}/{card.masks.name(image, split)}" == mask
    assert card.references[0].doi == doi
    assert licence in card.licence
    assert "licence" in card.unverified


@pytest.mark.parametrize("name", FACTS)
def test_a_dataset_is_what_the_fact_sheet_says(name):
    csv, image_root, archive, classes, unverified = FACTS[name]
    card = manifests.load_dataset_manifest(name)
    assert (card.csv, card.image_root) == (csv, image_root)
    assert not archive or card.access[0].url == DRIVE.format(archive)
    assert card.melanoma == MELANOMA.get(name, ())
    assert card.external == (name in ("ph2", "med_node"))
    assert card.class_names == tuple(classes.split())
    two = card.num_classes == 2
    kind = ("binary", "binary_label", "auroc") if two else ("multiclass", "label", "weighted_f1")
    assert (card.task, card.label_column, card.headline_metric) == kind
    assert set(card.unverified) == set(unverified.split())
    assert card.classes_verified == ("classes" not in card.unverified)
    assert (card.split_sizes, card.class_counts) == (SIZES.get(name), COUNTS.get(name))
    assert [one.doi for one in card.references if one.doi] == [DOIS[n] for n in (name,) if n in DOIS]
    assert LICENCES[name] in card.licence
    for words in CAVEATS[name]:
        assert any(words in caveat for caveat in card.caveats), words
    for key in ("title", "modality", "institution", "cited"):
        assert getattr(card, key)


def test_published_results_are_the_reference_results():
    results = manifests.load_published_results()
    assert {(r.dataset, r.protocol, r.encoder): r.metrics for r in results} == PUBLISHED
    assert len(results) == len(PUBLISHED)
    assert all("SiyuanYan1/PanDerm" in r.source for r in results)
    sizes = {(r.dataset, r.protocol): r.split_sizes for r in results if r.split_sizes}
    assert sizes == {("ham10000", "linear_probe"): SIZES["ham10000"], ("pad_ufes", "fine_tune"): SIZES["pad_ufes"]}
    assert [r.settings["seed"] for r in results] == [0, 0, 0, 122]
    assert manifests.published_value("ham10000", "linear_probe", "panderm_large", "aupr") == 0.877725
    assert manifests.published_value("ham10000", "linear_probe", "panderm_base", "aupr") is None
    assert manifests.published_value("ham10000", "linear_probe", "panderm_large", "top3") is None


@pytest.mark.parametrize(
    ("name", "layout", "sizes", "features", "source"),
    [
        ("panderm_large", "encoder_prefix", (1024, 24, 16), 1024, "panderm_ll_data6_checkpoint-499.pth"),
        ("panderm_base", "plain", (768, 12, 12), 768, "panderm_bb_data6_checkpoint-499.pth"),
        ("dinov2_large", "timm", None, 1024, "vit_large_patch14_dinov2.lvd142m"),
        ("sl_imagenet_large", "timm", None, 1024, "vit_large_patch16_224.orig_in21k"),
        ("swavderm_resnet50", "module_prefix", None, 2048, "swavderm_resnet50.pth"),
        ("panderm_tiny", "encoder_prefix", (96, 4, 2), 96, "panderm_tiny.pth"),
        ("random_tiny", "none", (96, 4, 2), 96, ""),
    ],
)
def test_encoders(name, layout, sizes, features, source):
    encoder = manifests.load_encoder_manifest(name)
    assert (encoder.layout, encoder.num_features) == (layout, features)
    assert encoder.architecture == ("beit" if sizes else "timm")
    if sizes:
        assert (encoder.width, encoder.depth, encoder.heads) == sizes
    assert source in (encoder.weights_file, encoder.timm_name)
    assert bool(encoder.access) == (layout != "none")  # where to get it
    assert encoder.licence


def test_only_the_digest_that_is_known_is_given():
    known = {name: manifests.load_encoder_manifest(name).sha256 for name in manifests.list_encoders()}
    released = "be1e0fb108b3bc58721cb5195f136c948160799438f222ac1ffd142230ac1ff1"
    assert {name: digest for name, digest in known.items() if digest} == {"panderm_base": released}
    assert "trust" in manifests.load_encoder_manifest("panderm_base").sha256_note


def test_any_model_of_timm_is_an_encoder():
    encoder = manifests.load_encoder_manifest("timm:vit_small_patch16_224.augreg_in21k")
    assert (encoder.timm_name, encoder.layout) == ("vit_small_patch16_224.augreg_in21k", "timm")
    for name in ("timm:", "timm:../x", "timm:a b", "resnet50"):
        with pytest.raises(ManifestError, match=r"is unknown; .*timm:<model name>"):
            manifests.load_encoder_manifest(name)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ManifestError, match=r"did you mean 'ham10000'\?.*--new-dataset"):
        manifests.load_dataset_manifest("ham1000")
    with pytest.raises(ManifestError, match="did you mean 'panderm_large'"):
        manifests.load_encoder_manifest("panderm-large")
    with pytest.raises(ManifestError, match="known: demo, paper"):
        manifests.load_profile("papr")
    for name in ("HAM10000", "../datasets/ham10000", ".ham10000", ""):
        with pytest.raises(ManifestError, match="is unknown"):
            manifests.load_dataset_manifest(name)


def test_the_profiles_are_those_of_the_workspace():
    assert tuple(yaml.safe_load((ROOT / "data_manifests/profiles.yaml").read_text())) == PROFILES


def test_own_data_have_their_datasets_and_the_first_encoder_that_has_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MANIFEST_ROOT", folder)  # without the weights that are shipped
    mine = dataclasses.replace(manifests.load_dataset_manifest("ddi"), name="mine", title="mine", own=True)
    manifests.write_dataset_manifest(dataclasses.replace(mine, short_title="mine"))
    weights = tmp_path / "weights"
    weights.mkdir()
    found, on_request = [manifests.load_profile("own", weights).encoders], []
    for name in ("panderm_tiny", "panderm_base", "panderm_large"):
        (weights / manifests.load_encoder_manifest(name).weights_file).touch()
        profile = manifests.load_profile("own", weights)
        found.append(profile.encoders)
        on_request.append(profile.on_request)
        assert profile.choice("fine_tune").encoders == profile.encoders
    assert on_request == [("fine_tune", "segmentation"), (), ()]  # by the toy they are not worth their time
    assert found == [("panderm_large",), ("panderm_tiny",), ("panderm_base",), ("panderm_large",)]
    assert manifests.load_profile("own", weights).datasets == ("mine",)
    assert "mine" not in manifests.load_profile("paper").datasets
    toys = [name for name in manifests.list_encoders() if manifests.load_encoder_manifest(name).toy]
    assert toys == ["panderm_tiny", "random_tiny"]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "data_manifests", tmp_path / "data_manifests", ignore=shutil.ignore_patterns("weights"))
    for path in (tmp_path / "data_manifests/datasets").iterdir():
        if path.stem not in SHIPPED:
            path.unlink()
    return tmp_path / "data_manifests"


def problem_lines(path: Path, folder: Path) -> list[str]:
    """The lines of the error that reading a changed file gives, without the file's name, which each begins with."""
    with pytest.raises(ManifestError) as error:
        if path.parent.name == "datasets":
            manifests.load_dataset_manifest(path.stem, folder)
        elif path.stem == "encoders":
            manifests.list_encoders(folder)
        elif path.stem == "profiles":
            manifests.load_profile("demo", root=folder)
        else:
            manifests.load_published_results(folder)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines), lines
    with pytest.raises(ManifestError) as checked:
        manifests.check_manifests(folder)
    assert set(lines) <= set(str(checked.value).splitlines())
    return [line.removeprefix(f"{path}:").strip() for line in lines]


def change(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


FAULTS = {
    "melanoma that is no class": (
        "label_column:",
        "melanoma: [mel]\nlabel_column:",
        "'mel' is not a class; .* benign,",
    ),
    "all of it melanoma": ("label_column:", "melanoma: [benign, malignant]\nlabel_column:", "or every class"),
    "melanoma twice": ("label_column:", "melanoma: [malignant, malignant]\nlabel_column:", "names a class twice"),
    "external for nothing": ("label_column:", "external: true\nlabel_column:", "external: .* needs `melanoma`"),
    "external and trained on": ("label_column:", "external: true\nlabel_column:", "write split_sizes .* of test only"),
    "unknown metadata": (
        "metadata: {skin_tone:",
        "metadata: {tone:",
        "metadata.tone: no such kind; write one of age, sex",
    ),
    "unknown key": ("modality: clinical", "modality: clinical\nlabels: 2", r"key 'labels' is unknown; .*; remove it"),
    "misspelt key": ("modality: clinical", "modalty: clinical", "did you mean 'modality'"),
    "missing key": ("licence: ", "unverified_licence: ", "licence: missing; write licence: text"),
    "missing class": (
        "  - {name: malignant, long_name: malignant}\n",
        "",
        "classes: 1 do not match task: binary; ",
    ),
    "class without a name": ("long_name: malignant}", "long_nam: malignant}", r"classes\[1\]: long_name: missing"),
    "two classes of one name": ("{name: malignant,", "{name: benign,", "'benign' is the name of 2 classes"),
    "counts of another number of classes": (
        "[108, 29]",
        "[137]",
        "class_counts.test: 1 numbers for 2 classes; ",
    ),
    "counts that do not add up": ("[108, 29]", "[108, 28]", r"sums to 136, split_sizes.test is 137; correct one"),
    "negative count": ("[108, 29]", "[138, -1]", "class_counts.test: -1 is negative"),
    "unknown split": (
        "{train: 427, val: 83,",
        "{train: 427, valid: 83,",
        "split_sizes.valid: no such split; ",
    ),
    "no training image": ("{train: 427,", "{train: 0,", "split_sizes.train: 0; write the number of images, or remove"),
    "size that is no number": ("{train: 427,", "{train: many,", "split_sizes.train: is the text 'many'; write a whole"),
    "size that is a truth value": ("{train: 427,", "{train: yes,", "split_sizes.train: is the boolean True; write"),
    "fraction": ("{train: 427,", "{train: 427.5,", "split_sizes.train: is the number 427.5; write a whole number"),
    "empty value": ("modality: clinical", "modality:", "modality: is empty; write text"),
    "text for a list": ("unverified: [", "unverified: x  # [", "unverified: is the text 'x'; write a list of text"),
    "unknown task": ("task: binary", "task: regression", "task: 'regression' is unknown; write binary, multi"),
    "another metric": ("headline_metric: auroc", "headline_metric: acc", "'acc' is not for binary; write auroc"),
    "another column": (
        "label_column: binary_label",
        "label_column: dx",
        "'dx' is unknown; write label",
    ),
    "an unverified thing that is not a key": (
        "unverified: [classes",
        "unverified: [class",
        "'class' is not a key",
    ),
    "absolute path": ("csv: DDI/", "csv: /data/DDI/", "csv: '/data/DDI/ddi_clean.csv' is not below the data"),
    "path out of the root": ("image_root: DDI/", "image_root: ../", r"image_root: '\.\./images' is not below"),
    "a release that makes a table and cannot": (
        "release: {",
        "release: {table: ddi_metadata.csv, ",
        "release.lacks: then it makes no table; remove table and labels",
    ),
    "a release without columns": (
        "release: {lacks:",
        "release: {table: ddi_metadata.csv, note:",
        "release.image: missing; write a column of the table",
    ),
    "a release without splits": (
        "release: {lacks:",
        "release: {table: ddi_metadata.csv, image: DDI_file, label: malignant, note:",
        r"release.split: write a column of splits, or indexes: \{train, val, test\}",
    ),
    "a release of folders with splits": (
        "release: {lacks:",
        "release: {labels: {a: benign}, note:",
        "release.table: missing; folders of classes have no splits",
    ),
    "a release of unknown classes": (
        "release: {lacks:",
        "release: {table: t.csv, image: f, label: m, split: s, labels: {x: melanoma}, note:",
        "release.labels: 'melanoma' is not a class; write one of benign, malignant",
    ),
    "counts of a release": (
        "release: {lacks:",
        "release: {table: t.csv, image: f, label: m, split: s, counts: [1], note:",
        "release.counts: 1 numbers for 2 classes",
    ),
    "unknown way to fetch": (
        "fetch: by hand",
        "fetch: robot",
        r"access\[0\].fetch: 'robot' is unknown; write automatic",
    ),
    "nothing to download": (
        'url: "https://ddi-dataset.github.io/index.html", note: registration',
        'url: "ddi-dataset.github.io", fetch: automatic, note: registration',
        r"access\[1\].url: 'ddi-dataset.github.io' cannot be downloaded; write one that begins with https://",
    ),
    "place out of the root": (
        "fetch: by hand",
        "fetch: by hand, files: {a.zip: ../x}",
        r"access\[0\].files.a.zip: '../x' is not below the root",
    ),
    "reference without a year": ("year: 2022, ", "", r"references\[0\]: year: missing; write year: a whole number"),
    "reference by nobody": ("[Daneshjou R, et al]", "[et al]", r"references\[0\].authors: begin with no name; write"),
    "year that is none": ("year: 2022", "year: 22", r"references\[0\].year: 22 is no year"),
    "address for a DOI": (
        "doi: 10.1126",
        "doi: https://doi.org/10.1126",
        r"is no DOI; write 10.1038/\.\.\. without https",
    ),
    "braces for BibTeX": ("pages: eabq6147", 'pages: "1}2"', r"references\[0\].pages: '1}2' has blanks, braces"),
    "people of another kind": (
        "population: {",
        "population: {height: tall, ",
        "population.height: no such kind; write one",
    ),
    "number of images twice": (
        "licence:",
        "images: 647\nlicence:",
        "images: 647; write the number of all images, or re",
    ),
    "key given twice": (
        "modality: clinical",
        "modality: clinical\nmodality: x",
        r"\d+: .*'modality' is given twice",
    ),
    "no YAML": ("modality: clinical", "modality: [clinical", "not valid YAML"),
    "name of another dataset": ("name: ddi", "name: hiba", "name: 'hiba' is the dataset of hiba.yaml; write name: ddi"),
    "name that is not the file's": ("name: ddi", "name: DDI", "name: 'DDI' is not the file's name; write name: ddi"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_dataset_names_file_key_and_remedy(folder, fault):
    old, new, message = FAULTS[fault]
    path = folder / "datasets/ddi.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert text != path.read_text(encoding="utf-8")
    assert any(re.search(message, line) for line in problem_lines(path, folder)), problem_lines(path, folder)


def test_all_faults_of_all_files_are_reported_at_once(folder):
    ddi, ham = folder / "datasets/ddi.yaml", folder / "datasets/ham10000.yaml"
    change(
        ddi,
        ("modality: clinical", "modality: 7\ncolour: red"),
        ("task: binary", "task: regression"),
        ("[108, 29]", "[108, 28, 1]"),
        ("{train: 427,", "{train: -3,"),
        ("licence: ", "licens: "),
        ("unverified: [classes", "unverified: [class"),
    )
    lines = problem_lines(ddi, folder)
    keys = "modality colour task class_counts.test split_sizes.train licence licens unverified"
    for key in keys.split():
        assert sum(line.startswith((f"{key}:", f"key {key!r}")) for line in lines) == 1, (key, lines)
    assert len(lines) == len(keys.split())
    change(ham, ("{train: 8207,", "{train: 8208,"))
    change(folder / "encoders.yaml", ("layout: plain", "layout: planar"))
    with pytest.raises(ManifestError) as error:
        manifests.check_manifests(folder)
    text = str(error.value)
    assert f"{ham}: class_counts.train: sums to 8207, split_sizes.train is 8208; correct one" in text
    assert "panderm_base.layout: 'planar' is unknown; write one of encoder_prefix, plain" in text
    assert set(lines) <= {line.removeprefix(f"{ddi}: ") for line in text.splitlines()}


def test_two_datasets_cannot_have_one_name(folder):
    """A dataset is called what its file is called; what is left is a copy, case, suffixes, and the name in figures."""
    datasets = folder / "datasets"
    shutil.copy(datasets / "ddi.yaml", datasets / "ddi_copy.yaml")
    (problem, *_) = problem_lines(datasets / "ddi_copy.yaml", folder)
    assert problem == "name: 'ddi' is the dataset of ddi.yaml; write name: ddi_copy"
    assert manifests.load_dataset_manifest("ddi", folder).name == "ddi"
    change(datasets / "ddi_copy.yaml", ("name: ddi\n", "name: ddi_copy\n"))
    with pytest.raises(ManifestError, match=r"short_title: 'DDI' is short_title of ddi\.yaml too; write another"):
        manifests.check_manifests(folder)
    (datasets / "ddi_copy.yaml").rename(datasets / "ddi_copy.yml")
    with pytest.raises(ManifestError, match=r"ddi_copy\.yml: is not read; rename it to ddi_copy\.yaml"):
        manifests.check_manifests(folder)
    with pytest.raises(ManifestError, match=r"rename .*ddi_copy\.yml to ddi_copy\.yaml"):
        manifests.load_dataset_manifest("ddi_copy", folder)
    (datasets / "ddi_copy.yml").rename(datasets / "DDI.yaml")
    if manifests.list_datasets(folder).count("ddi") == 1 and "DDI" in manifests.list_datasets(folder):
        change(datasets / "DDI.yaml", ("name: ddi_copy\n", "name: DDI\n"))
        assert "rename this file to ddi.yaml or another name" in problem_lines(datasets / "DDI.yaml", folder)[0]
    # What an editor or macOS leaves beside a manifest is none.
    (datasets / "DDI.yaml").rename(datasets / "._ddi.yaml")
    assert "._ddi" not in manifests.list_datasets(folder)
    assert manifests.check_manifests(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: dé".encode("latin-1"), "byte 7 is not UTF-8; save the file as UTF-8"),
        (b"", "is empty; write `key: value` lines"),
        (b"- a\n", "is a list; write `key: value` lines"),
        (b"name: \0", "not valid YAML"),
    ],
)
def test_a_file_that_is_none(folder, content, message):
    path = folder / "datasets/ddi.yaml"
    path.write_bytes(content)
    assert message in problem_lines(path, folder)[0]


def test_a_missing_file_says_how_to_restore_it(folder):
    (folder / "encoders.yaml").unlink()
    path = folder / "encoders.yaml"
    assert problem_lines(path, folder) == [f"missing; restore it with `git checkout -- {path}`"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layout: plain", "layout: planar", "panderm_base.layout: 'planar' is unknown; write one of encoder_prefix,"),
        ("width: 768", "wide: 768", "panderm_base: key 'wide' is unknown"),
        ("width: 768", "wide: 768", "panderm_base.width: missing; a beit needs it"),
        ('color: "#E69F00"', "color: red", "panderm_base.color: 'red' is not a colour; write one like '#D55E00'"),
        ('color: "#E69F00"', "color: #E69F00", "panderm_base: color: is empty; write text"),
        ("sha256: be1e", "sha256: BE1E", "panderm_base.sha256: 'BE1E"),
        ("timm_name: resnet50\n", "", "swavderm_resnet50.timm_name: missing"),
        ("weights_file: swavderm_resnet50.pth\n", "", "swavderm_resnet50.weights_file: missing"),
        (
            "title: PanDerm (base)",
            "title: PanDerm (large)",
            "'PanDerm (large)' is panderm_large.title",
        ),
        ("panderm_base:", "panderm_large:", "'panderm_large' is given twice; keep one"),
        (
            "title: PanDerm (base)",
            "title: x\n  name: panderm_large",
            "panderm_base.name: the entry's key is its name",
        ),
        ("title: PanDerm (base)", "title: 3", "panderm_base: title: is the number 3; write text"),
    ],
)
def test_faults_of_encoders(folder, old, new, message):
    path = folder / "encoders.yaml"
    text = path.read_text(encoding="utf-8")
    cut = text.index("panderm_base:") if old in text[text.index("panderm_base:") :] else 0
    path.write_text(text[:cut] + text[cut:].replace(f"  {old}" if old.endswith("\n") else old, new, 1))
    assert any(message in line for line in problem_lines(path, folder)), problem_lines(path, folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("profiles", "quick: [demo,", "quick: [demi,", "demo.quick: 'demi' is not a dataset of the profile; remove"),
        ("profiles", "seeds: [0]\npaper", "seeds: []\npaper", "demo.seeds: is empty; name one or more"),
        ("profiles", "quick: [demo, ham10000]", "quick: [ham]", "demo.fine_tune.quick: 'ham' is not a dataset of the"),
        ("profiles", "quick: [demo, ham10000]", "quik: [demo]", "demo: protocols.fine_tune: key 'quik' is unknown"),
        ("profiles", "synthetic: true", "synthetic: 1", "demo: synthetic: is the number 1; write true or false"),
        (
            "published_results",
            "accuracy: 0.923701",
            "accuracy: 92.37",
            "entry 1: metrics.accuracy: 92.37 is not",
        ),
        ("published_results", "accuracy: 0.923701", "accuracy: .nan", "entry 1: metrics.accuracy: nan is not"),
        (
            "published_results",
            "encoder: panderm_base",
            "model: panderm_base",
            "entry 3: encoder: missing",
        ),
    ],
)
def test_faults_of_profiles_and_published_results(folder, file, old, new, message):
    path = folder / f"{file}.yaml"
    change(path, (old, new)) if path.read_text().count(old) == 1 else path.write_text(
        path.read_text().replace(old, new, 1)
    )
    assert any(message in line for line in problem_lines(path, folder)), problem_lines(path, folder)


def test_a_name_that_no_file_defines_is_found(folder):
    change(folder / "profiles.yaml", ("  quick: [demo, ham10000, pad_ufes", "  quick: [demo, ham10000"))
    path = folder / "profiles.yaml"
    path.write_text(path.read_text().replace("mskcc, hiba,", "mskcc, hibba,").replace("random_tiny]", "tiny]"))
    path.write_text(path.read_text().replace("panderm_base]}", "panderm_bass]}"))
    with pytest.raises(ManifestError) as error:
        manifests.check_manifests(folder)
    assert "did you mean 'hiba'?" in str(error.value)
    assert "encoder 'tiny' is unknown" in str(error.value)
    assert "did you mean 'panderm_base'?" in str(error.value)
    path.write_text(
        path.read_text().replace("hibba", "hiba").replace("bass", "base").replace(" tiny]", " timm:resnet50]")
    )
    assert manifests.check_manifests(folder)


def test_a_changed_file_is_read_again(folder):
    path = folder / "datasets/ddi.yaml"
    assert manifests.load_dataset_manifest("ddi", folder).short_title == "DDI"
    change(path, ("short_title: DDI", "short_title: DDI, all of it"))
    assert manifests.load_dataset_manifest("ddi", folder).short_title == "DDI, all of it"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_manifest_is_written_and_read_back_the_same(tmp_path, name):
    (tmp_path / "datasets").mkdir()
    card = manifests.load_dataset_manifest(name)
    path = manifests.write_dataset_manifest(card, tmp_path)
    assert manifests.load_dataset_manifest(name, tmp_path) == card
    with pytest.raises(ManifestError, match="already exists"):
        manifests.write_dataset_manifest(card, tmp_path)
    assert list(path.parent.iterdir()) == [path]


def test_a_manifest_that_would_not_be_read_back_is_not_written(tmp_path):
    (tmp_path / "datasets").mkdir()
    card = dataclasses.replace(manifests.load_dataset_manifest("ddi"), name="mine", split_sizes={"train": 0})
    with pytest.raises(ManifestError, match=r"mine\.yaml: split_sizes\.train: 0"):
        manifests.write_dataset_manifest(card, tmp_path)
    assert list((tmp_path / "datasets").iterdir()) == []
