"""References to publications, and BibTeX made from them: the same references give the same text and keys."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

OTHERS = "et al"  # the last of `Reference.authors`, if not all are named
SPECIAL = re.compile(r"([&%$#_{}])")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A publication to cite.

    Attributes:
        authors: "Tschandl P", surname and initials, or the name of a group; "et al" as the last if there are others.
        journal, volume, pages: Of an article. `book`, `publisher`: of a chapter or a conference paper.
        key: Of its BibTeX entry; "": first author and year, "tschandl2018".
        cites: What it describes, if a manifest has several: "the masks".
    """

    authors: tuple[str, ...]
    year: int
    title: str = ""
    journal: str = ""
    volume: str = ""
    pages: str = ""
    book: str = ""
    publisher: str = ""
    doi: str = ""
    url: str = ""
    key: str = ""
    cites: str = ""

    @property
    def text(self) -> str:
        """The reference in a line, without its DOI: "Tschandl P, Rosendahl C. Sci Data 5:180161 (2018)"."""
        named = [name for name in self.authors if name != OTHERS]
        others = f"{',' if len(named) > 1 else ''} {OTHERS}" if len(named) < len(self.authors) else ""
        volume = f" {self.volume}" if self.volume else ""
        place = f"{self.journal}{volume}{f':{self.pages}' if self.pages else ''}" if self.journal else ""
        if self.book:
            place = ", ".join(part for part in (f"In {self.book}", self.pages, self.publisher) if part)
        parts = [f"{', '.join(named)}{others}", self.title, place]
        return f"{'. '.join(part for part in parts if part)} ({self.year})"

    @property
    def link(self) -> str:
        """Where it can be read; "" if unknown."""
        return f"https://doi.org/{self.doi}" if self.doi else self.url

    @property
    def bibtex_key(self) -> str:
        """The key of its BibTeX entry, from itself alone, so that it stays whatever else is cited."""
        surname = _name_parts(self.authors[0])[0]
        plain = unicodedata.normalize("NFKD", surname).encode("ascii", "ignore").decode().lower()
        return self.key or f"{re.sub('[^a-z0-9]', '', plain) or 'anonymous'}{self.year}"

    def bibtex(self, key: str = "") -> str:
        """Returns its BibTeX entry, under another key if one is given; fields that are unknown are left out."""
        kind = "article" if self.journal else "misc"
        if self.book:
            kind = "incollection" if self.publisher else "inproceedings"
        fields = {
            "author": " and ".join(map(_bibtex_author, self.authors)),
            "title": self.title and f"{{{_escape(self.title)}}}",  # the braces keep its capitals
            "journal": _escape(self.journal),
            "booktitle": _escape(self.book),
            "publisher": _escape(self.publisher),
            "volume": self.volume,
            "pages": self.pages.replace("-", "--"),
            "year": str(self.year),
            "doi": self.doi,
            "url": self.url,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{kind}{{{key or self.bibtex_key},", *lines, "}"])


def cited_text(references: Sequence[Reference]) -> str:
    """Returns references in a line, with links; of several, what each describes."""
    parts = [f"{one.text}{f' for {one.cites}' if one.cites else ''} {one.link}".strip() for one in references]
    return "; ".join(parts)


def bibtex(references: Iterable[Reference]) -> str:
    """Returns the BibTeX entries of references, each publication once, sorted by key."""
    return "\n\n".join(one.bibtex(key) for one, key in bibtex_keys(references).items())


def bibtex_keys(references: Iterable[Reference]) -> dict[Reference, str]:
    """Returns publication (a reference without `cites`) -> key; of several with one key, later ones get a number."""
    found = sorted({replace(one, cites="") for one in references}, key=lambda one: (one.bibtex_key, one.link, one.text))
    groups = [list(group) for _, group in groupby(found, key=lambda one: one.bibtex_key)]
    return {one: f"{one.bibtex_key}{f'-{i}' if i > 1 else ''}" for group in groups for i, one in enumerate(group, 1)}


def reference_problems(references: Iterable[Reference | None]) -> list[str]:
    """Returns `key: problem; remedy` for each problem of a manifest's references; None was reported before."""
    problems = []
    for i, one in enumerate(references):
        if one is None:
            continue
        if one.authors == () or (one.authors and one.authors[0] in ("", OTHERS)):
            problems.append(f"references[{i}].authors: begin with no name; write a list such as [Tschandl P, et al]")
        if one.year is not None and not 1800 <= one.year <= 2200:
            problems.append(f"references[{i}].year: {one.year} is no year; write one such as 2018")
        for name in ("doi", "url", "key", "volume", "pages"):
            if (text := getattr(one, name)) and re.search(r"[\s{}\\%]", text):
                problems.append(f"references[{i}].{name}: {text!r} has blanks, braces, \\ or %; remove them")
        if one.doi and not one.doi.startswith("10."):
            problems.append(f"references[{i}].doi: {one.doi!r} is no DOI; write 10.1038/... without https://doi.org/")
        if one.url and not one.url.startswith(("https://", "http://")):
            problems.append(f"references[{i}].url: {one.url!r} is no address; write one that begins with https://")
        if one.key and not re.fullmatch(r"[A-Za-z0-9:_-]+", one.key):
            problems.append(f"references[{i}].key: {one.key!r}; write letters, digits, :, _ or -")
    return problems


def _name_parts(author: str) -> tuple[str, str]:
    """Returns surname and initials of "Ricci Lara MA"; a group has no initials."""
    surname, _, initials = author.rpartition(" ")
    return (
        (surname, initials)
        if surname and re.fullmatch(r"[^\W\d_]{1,4}", initials) and initials.isupper()
        else (author, "")
    )


def _bibtex_author(author: str) -> str:
    if author == OTHERS:
        return "others"
    surname, initials = _name_parts(author)
    return (
        f"{_escape(surname)}, {' '.join(f'{letter}.' for letter in initials)}" if initials else f"{{{_escape(author)}}}"
    )


def _escape(text: str) -> str:
    """Returns text escaped for LaTeX; letters of any language stay, as BibTeX files are UTF-8."""
    text = re.sub(r"[\\~^]", lambda match: f"\\char{ord(match[0])} ", text)
    return SPECIAL.sub(r"\\\1", text)
