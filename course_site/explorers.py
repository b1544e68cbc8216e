"""A widget's stand-in: sliders over pictures that were drawn beforehand.

It works without a kernel, with a few lines of JavaScript (docs/_static/explorer.js).
Without those, one sees the picture of the notebook and the caption. The words under
the picture are its description, which a screen reader also gets when a slider moves.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST = 9  # pictures for one widget


@dataclass(frozen=True)
class Dial:
    """One control, and which of its values are drawn.

    Args:
        label: what stands beside it.
        values: the words for each of its values.
        start: the position of the value that the lesson begins with.
        is_words: whether the values are names. Of names none is left out, if possible.
    """

    label: str
    values: tuple[str, ...]
    start: int
    is_words: bool = False


@dataclass(frozen=True)
class Plan:
    """Which settings are drawn: `picks[d][i]` is a position on the control d.

    With `grid`, each control has a slider, and all combinations are drawn. Without,
    there is one slider for `settings`: the start, and one change at a time.
    """

    picks: tuple[tuple[int, ...], ...]
    settings: tuple[tuple[int, ...], ...]
    grid: bool


def plan(dials: Sequence[Dial], most: int = MOST) -> Plan:
    """Choose at most `most` settings: the start is one of them."""
    if len(dials) <= 2:
        counts = _counts(dials, most)
        picks = [
            spread(len(d.values), d.start, n)
            for d, n in zip(dials, counts, strict=True)
        ]
        return Plan(tuple(picks), tuple(itertools.product(*picks)), grid=True)
    start = tuple(dial.start for dial in dials)
    settings = [start]
    for place, dial in enumerate(dials):
        for other in spread(len(dial.values), dial.start, 3):
            if other != dial.start:
                settings.append((*start[:place], other, *start[place + 1 :]))
    return Plan(tuple((n,) for n in start), tuple(settings[:most]), grid=False)


def _counts(dials: Sequence[Dial], most: int) -> list[int]:
    """Leave values out until the combinations are few: numbers first, then names."""
    counts = [len(dial.values) for dial in dials]
    while math.prod(counts) > most:
        numbers = [i for i, d in enumerate(dials) if not d.is_words and counts[i] > 2]
        place = max(numbers or range(len(dials)), key=lambda i: counts[i])
        counts[place] -= 1
    return counts


def spread(count: int, start: int, wanted: int) -> tuple[int, ...]:
    """Return up to `wanted` of range(count), evenly, with both ends and the start.

    >>> spread(16, 2, 4)
    (0, 2, 10, 15)
    """
    wanted = min(wanted, count)
    if wanted < 2:
        return (start,)
    even = [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
    if start not in even:
        inner = even[1:-1] or even
        even[even.index(min(inner, key=lambda i: abs(i - start)))] = start
    return tuple(sorted(even))


def figure(
    number: int, dials: Sequence[Dial], chosen: Plan, pictures: Sequence[dict[str, Any]]
) -> str:
    """Return the HTML of a stand-in.

    Args:
        number: of the widget on its page; ids are made of it.
        dials: the controls.
        chosen: which settings were drawn.
        pictures: one for each setting: "src", "alt", "width" and "height".
    """
    start = chosen.settings.index(tuple(dial.start for dial in dials))
    sliders = "".join(
        _slider(f"explorer-{number}-{place}", label, values, position)
        for place, (label, values, position) in enumerate(_sliders(dials, chosen))
    )
    long = "" if chosen.grid else " explorer-sentences"  # beside the slider
    states = json.dumps(pictures, ensure_ascii=True).replace("</", "<\\/")
    return (
        f'<figure class="explorer" id="explorer-{number}">'
        f'<div class="explorer-controls{long}" hidden>{sliders}</div>'
        f"{_image(pictures[start])}"
        f"<figcaption>{_caption(pictures[start], len(pictures))}</figcaption>"
        f'<script type="application/json">{states}</script></figure>'
    )


def _sliders(dials: Sequence[Dial], chosen: Plan) -> list[tuple[str, list[str], int]]:
    """Return label, words of the positions, and first position of each slider."""
    if chosen.grid:
        return [
            (d.label, [d.values[i] for i in picks], picks.index(d.start))
            for d, picks in zip(dials, chosen.picks, strict=True)
            if len(picks) > 1
        ]
    words = [_difference(dials, setting) for setting in chosen.settings]
    return [("one change at a time", words, 0)]


def _difference(dials: Sequence[Dial], setting: Sequence[int]) -> str:
    changed = [
        f"{dial.label} {dial.values[i]}"
        for dial, i in zip(dials, setting, strict=True)
        if i != dial.start
    ]
    start = ", ".join(f"{dial.label} {dial.values[dial.start]}" for dial in dials)
    return ", ".join(changed) or start


def _slider(name: str, label: str, values: Sequence[str], position: int) -> str:
    words = html.escape(json.dumps(values))
    now = html.escape(values[position])
    return (
        f'<label for="{name}">{html.escape(label)}</label>'
        f'<input type="range" id="{name}" min="0" max="{len(values) - 1}" step="1" '
        f'value="{position}" aria-valuetext="{now}" data-values="{words}">'
        f'<output for="{name}">{now}</output>'
    )


def _image(picture: dict[str, Any]) -> str:
    return (
        f'<img src="{picture["src"]}" alt="{html.escape(picture["alt"])}" '
        f'width="{picture["width"]}" height="{picture["height"]}">'
    )


def _caption(picture: dict[str, Any], count: int) -> str:
    return (
        f'<span class="explorer-words" aria-live="polite">'
        f"{html.escape(picture['alt'])}</span> "
        f'<span class="explorer-note">These {count} pictures were drawn beforehand. In '
        "the notebook the controls take every value, and each move is computed.</span>"
    )


def still(image: str, alt: str) -> str:
    """Return a stored picture with a caption that says it does not move here."""
    return (
        f'<figure class="explorer">{image}<figcaption>'
        f'<span class="explorer-words">{html.escape(alt)}</span> '
        '<span class="explorer-note">This picture stands still here. In the notebook '
        "it has controls, and each move is computed.</span></figcaption></figure>"
    )
