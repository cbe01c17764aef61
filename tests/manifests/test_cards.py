"""Cards and BibTeX: every fact of a manifest is shown and marked, what is unknown is said, nothing is invented."""

import dataclasses
import re

import pytest

from panderm_utils import manifests
from panderm_utils.manifests import Card, Reference, Section

SHIPPED = [name for name in manifests.list_datasets() if not manifests.load_dataset_manifest(name).own]
ENTRY = re.compile(r"@(\w+)\{([A-Za-z0-9:_-]+),\n((?:  \w+ = \{.+\},\n)+)\}")


def parse_bibtex(text):
    """Returns key -> fields of BibTeX, of which every line is an entry's, a comment, or empty."""
    entries = {key: dict(re.findall(r"  (\w+) = \{(.+)\},\n", body)) for _, key, body in ENTRY.findall(text)}
    rest = ENTRY.sub("", text).splitlines()
    assert [line for line in rest if line and not line.startswith("%")] == []
    assert not any("@" in line for line in rest), "BibTeX reads an @ also in a comment"
    for fields in entries.values():
        assert all(value.count("{") == value.count("}") for value in fields.values())
    return entries


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_shows_every_fact_of_its_dataset_and_marks_what_is_not_verified(name):
    m = manifests.load_dataset_manifest(name)
    card = manifests.dataset_card(m)
    facts = {key: text for section in card.sections for key, text in section.facts.items()}
    (table,) = [section.table for section in card.sections if section.title == "Composition"]
    assert [row[1] for row in table[1:]] == [
        c.name if c.name == c.long_name else f"{c.long_name} ({c.name})" for c in m.classes
    ]
    assert ("unverified" in "".join(table[0] if table else ())) == (bool(m.classes) and not m.classes_verified)
    for access in m.access:
        assert any(access.url in text and access.note in text for text in facts.values())
    for key, text, value in (
        ("licence", facts["Licence"], m.licence),
        ("references", facts["Cite"], m.cited),
        ("collection", facts["Collection"], m.collection or "unknown"),
        ("labelling", facts["How they were made"], m.labelling or "unknown"),
        ("institution", facts["Institution"], m.institution),
        ("split_sizes", facts["Images"], ""),
    ):
        assert value in text
        assert text.endswith(" (unverified)") == (key in m.unverified)
    for kind in manifests.POPULATION:
        text = facts[kind.replace("_", " ").capitalize()]
        assert m.population.get(kind, "") in text
        assert (text == "unknown") == (
            kind not in m.population and kind.rstrip("s") not in m.groups and kind not in m.metadata
        )
    assert ("Melanoma" in facts) == bool(m.melanoma)
    assert ("External" in facts) == m.external
    (faults,) = [section.notes for section in card.sections if section.title == manifests.FAULTS]
    assert faults == m.caveats
    assert facts.get("Not verified", "") == ", ".join(key.replace("_", " ") for key in m.unverified)
    assert set(parse_bibtex(card.bibtex)) == {one.bibtex_key for one in m.references}


def test_counts_of_the_data_are_beside_what_is_published():
    card = manifests.dataset_card(manifests.load_dataset_manifest("ham10000"), {"age": "60+: 9 (of 9 test images)"})
    (people,) = [section.facts for section in card.sections if section.title == "People"]
    assert people["Age"] == "missing for 57 images; column age of its table; 60+: 9 (of 9 test images)"


def test_the_card_of_your_data_says_what_is_unknown_and_where_to_write_it():
    mine = manifests.DatasetManifest(
        name="mine", title="mine", modality="unknown", institution="own data", task="binary", image_root="/x",
        image_suffix=".jpg", headline_metric="auroc", licence="not stated", own=True,
    )  # fmt: skip
    text = manifests.dataset_card(mine).markdown()
    for line in ("Collection:** unknown", "Age:** unknown", "How they were made:** unknown", "Cite:** unknown"):
        assert line in text
    assert "modality unknown" in text
    assert r"in data\_manifests/datasets/mine.yaml" in text
    assert "bibtex" not in text


def test_markdown_lets_no_markup_through_and_links_addresses():
    m = dataclasses.replace(
        manifests.load_dataset_manifest("demo"),
        title="<script>x</script> | *a* [b](c)",
        caveats=("see https://a.org/x_y, and <b>",),
    )
    text = manifests.dataset_card(m).markdown()
    assert "<script>" not in text
    assert r"\| \*a\* \[b\](c)" in text
    assert "see <https://a.org/x_y>, and " in text
    assert "<b>" not in text
    assert m._repr_markdown_() == text


@pytest.mark.parametrize("name", manifests.list_encoders())
def test_the_card_of_an_encoder_says_what_it_is_for_and_what_is_unknown(name):
    e = manifests.load_encoder_manifest(name)
    evaluation = manifests.Section("Evaluation", notes=("none yet",))
    text = manifests.encoder_card(e, [evaluation]).markdown()
    assert "not a medical device" in text
    assert "none yet" in text
    assert ("**Images:** unknown" in text) == (e.trained_on == "")
    assert ("**People:** unknown" in text) != e.toy
    assert ("**Toy:**" in text) == e.toy
    assert all(access.url in text for access in e.access)


def test_the_bibtex_of_everything_shipped_is_valid_sorted_and_unique():
    cards = [manifests.load_dataset_manifest(name) for name in SHIPPED]
    cards += [manifests.load_encoder_manifest(name) for name in manifests.list_encoders()]
    references = [one for card in cards for one in card.references]
    text = manifests.bibtex(references)
    entries = parse_bibtex(text)
    assert list(entries) == sorted({one.bibtex_key for one in references})
    assert manifests.bibtex(references[::-1]) == text
    assert len(entries) < len(references)  # HAM10000 and its masks share one
    assert entries["tschandl2018"] == {
        "author": "Tschandl, P. and Rosendahl, C. and Kittler, H.",
        "journal": "Sci Data",
        "volume": "5",
        "pages": "180161",
        "year": "2018",
        "doi": "10.1038/sdata.2018.161",
    }
    assert entries["yan2025"]["title"] == "{A multimodal vision foundation model for clinical dermatology}"
    assert entries["dermnet2023"]["author"] == "{DermNet}"


def test_bibtex_keeps_names_and_escapes_what_latex_would_read():
    one = Reference(authors=("Müller-Lüdenscheidt ÄÖ", "R&D_group", "et al"), year=2020, title="50% of {x} \\ @ ~1")
    text = one.bibtex()
    assert "@misc{mullerludenscheidt2020," in text
    assert "author = {Müller-Lüdenscheidt, Ä. Ö. and {R\\&D\\_group} and others}" in text
    assert r"50\% of \{x\} \char92 " in text
    assert one.text.startswith("Müller-Lüdenscheidt ÄÖ, R&D_group, et al. 50%")


def test_two_publications_never_share_a_key():
    one, other = (Reference(authors=("Li A",), year=2020, doi=doi) for doi in ("10.1/a", "10.1/b"))
    text = manifests.bibtex([other, one])
    assert {key: fields["doi"] for key, fields in parse_bibtex(text).items()} == {
        "li2020": "10.1/a",
        "li2020-2": "10.1/b",
    }
    named = dataclasses.replace(other, key="li2020second")
    assert set(parse_bibtex(manifests.bibtex([one, named]))) == {"li2020", "li2020second"}
    assert manifests.bibtex([one, dataclasses.replace(one, cites="the masks")]) == one.bibtex()


def test_a_long_address_is_a_link_that_fits_a_line():
    long = f"https://example.org/{'a' * 100}/list_of_images.csv"
    card = Card(
        "title", "Datasheet", "", (Section("Use", {"List": f"{long}, the list alone", "Site": "https://a.org/b"}),)
    )
    assert rf"- **List:** [example.org/…/list\_of\_images.csv]({long}), the list alone" in card.markdown()
    assert "- **Site:** <https://a.org/b>" in card.markdown()
