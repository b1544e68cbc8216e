"""What a lesson quotes from training is a row of docs/results/claims.md that holds."""

import re
from statistics import mean, stdev

import nbformat
import pytest

from benchmarks.claims import core
from benchmarks.claims.core import CHECKOUT, PAGE, below, both, claim

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"\]\(\.\./docs/results/claims\.md#([\w-]+)\)")
QUOTE = re.compile(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")


def paragraphs(path):
    """Yield each paragraph, list item and row of a table in a notebook's words."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            yield from re.split(r"\n\s*\n|\n(?=[-|*] ?)", cell.source)


def complaints(texts, rows):
    """Say of each quote and link what is not so in the rows, which go by anchor."""
    for text in texts:
        links, quotes = LINK.findall(text), QUOTE.findall(text)
        if quotes and not links:
            yield f"no link to a claim: {text}"
        for link in links:
            if link not in rows:
                yield f"no claim {link}: {text}"
            elif not rows[link].holds:
                yield f"{link} does not hold: {text}"
        found = [rows[link] for link in links if link in rows]
        known = [pair for row in found for pair in row.quotes.values()]
        for quote in quotes if found else ():
            if not any(quoted(quote, pair) for pair in known):
                yield f"{' ± '.join(quote)} is in no row of {links}: {text}"


def quoted(quote, measured):
    """Say if a mean and a spread are the measured ones, rounded to what is shown."""
    places = [len(number.partition(".")[2]) for number in quote]
    shown = [f"{n:.{p}f}" for n, p in zip(measured, places, strict=True)]
    return shown == list(quote)


def stored():
    sections = core.sections(PAGE.read_text(encoding="utf-8"))
    return {name: core.read(text) for name, text in sections.items()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_quotes_what_was_measured(path):
    assert list(complaints(paragraphs(path), stored())) == []


def test_each_claim_was_measured_holds_and_is_linked_by_its_lesson():
    rows, known = stored(), core.claims()
    assert list(rows) == list(known)
    linked = {
        path.stem[3:]: {n for text in paragraphs(path) for n in LINK.findall(text)}
        for path in NOTEBOOKS
    }
    for name, found in known.items():
        assert rows[name].holds, name
        assert rows[name].sentence == found.sentence, name
        assert rows[name].seeds == found.seeds >= 5, name
        assert name in linked[found.lesson], name


def test_the_page_is_what_make_claims_writes():
    page = PAGE.read_text(encoding="utf-8")
    assert core.assemble(core.sections(page)) == page


def test_the_means_and_spreads_of_the_page_are_those_of_its_seeds():
    for name, text in core.sections(PAGE.read_text(encoding="utf-8")).items():
        digits = core.claims()[name].digits
        for line in text.splitlines()[6:]:
            if line.startswith("| "):
                *seeds, middle, spread = map(float, line.strip("| ").split("|")[1:])
                rounding = 10**-digits
                assert abs(mean(seeds) - middle) <= rounding, name
                assert abs(stdev(seeds) - spread) <= 1.5 * rounding, name


@claim("Twice is more.", below("once", "twice"), digits=2)
def twice_is_more(seed):
    return {"once": seed + 1, "twice": 2 * seed + 2}


def test_a_section_is_read_as_it_was_written():
    row = core.read(core.section(twice_is_more))
    assert row == (
        "Twice is more.",
        5,
        {"once": (3.0, 1.58), "twice": (6.0, 3.16)},
        True,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("About 93 ± 1.", "no link"),
        ("About 3.0 ± 1.6 ([x](../docs/results/claims.md#other)).", "no claim other"),
        ("About 3.1 ± 1.6 ([x](../docs/results/claims.md#true)).", "is in no row"),
        ("About 3.0 ± 1.7 ([x](../docs/results/claims.md#true)).", "is in no row"),
        ("More ([x](../docs/results/claims.md#false)).", "does not hold"),
        ("About 3.0 ± 1.6 ([x](../docs/results/claims.md#true)).", None),
        ("About 3 ± 1.58 ([x](../docs/results/claims.md#true)).", None),
        ("Nothing is quoted.", None),
    ],
)
def test_a_wrong_quote_is_noticed(text, words):
    row = core.read(core.section(twice_is_more))
    found = list(complaints([text], {"true": row, "false": row._replace(holds=False)}))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_conditions_look_at_every_seed():
    series = {"a": [1.0, 2.0], "b": [2.0, 2.5]}
    assert below("a", "b")(series)
    assert not below("a", "b", by=0.5)(series)
    assert not below("b", "a")(series)
    assert not both(below("a", "b"), below("b", "a"))(series)


def test_less_than_five_seeds_make_no_claim():
    with pytest.raises(ValueError, match="got 3 seeds; wanted 5 or more"):
        claim("No.", below("a", "b"), seeds=3)
