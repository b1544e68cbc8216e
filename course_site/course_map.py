"""The map of the lessons: a list whose arrows lead from a lesson to those after it.

The rows have equal heights, so the arrows, in a picture beside them, fit at any width.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from course_site.lessons import Lesson

LANE = 18  # pixels between two arrows that run side by side


def course_map(lessons: Sequence[Lesson]) -> str:
    """Return the map as HTML."""
    lanes = assign_lanes(lessons)
    width = LANE * (max(lanes.values(), default=0) + 2)
    rows = "".join(_row(lesson) for lesson in lessons)
    return (
        f'<div class="course-map" style="--map-lanes: {width}px">'
        f"{_arrows(lessons, lanes, width)}<ol>{rows}</ol></div>"
    )


def assign_lanes(lessons: Sequence[Lesson]) -> dict[str, int]:
    """Give each lesson that others build on a lane; arrows of two never overlap."""
    place = {lesson.number: i for i, lesson in enumerate(lessons)}
    lanes: dict[str, int] = {}
    ends: list[tuple[int, int, int]] = []
    for start in lessons:
        followers = [place[x.number] for x in lessons if start.number in x.after]
        if not followers:
            continue
        begin, end = place[start.number], max(followers)
        taken = {lane for first, last, lane in ends if first <= end and begin <= last}
        lane = next(n for n in range(len(lessons)) if n not in taken)
        ends.append((begin, end, lane))
        lanes[start.number] = lane
    most = max(lanes.values(), default=0)
    return {number: most - lane for number, lane in lanes.items()}


def _arrows(lessons: Sequence[Lesson], lanes: dict[str, int], width: int) -> str:
    place = {lesson.number: i for i, lesson in enumerate(lessons)}
    lines = []
    for lesson in lessons:
        for before in lesson.after:
            x = width - LANE * (lanes[before] + 1)
            top, bottom = place[before] * 10 + 5, place[lesson.number] * 10 + 5
            path = f"M{width},{top}H{x}V{bottom}H{width}"
            lines.append(f'<path class="lane-{lanes[before] % 4}" d="{path}"/>')
    box = f"0 0 {width} {10 * len(lessons)}"
    return (
        f'<svg viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(lines)}</svg>"
    )


def _row(lesson: Lesson) -> str:
    after = ", ".join(lesson.after)
    before = f"after {after}" if after else "begin here"
    arrow = '<span class="course-map-tip" aria-hidden="true"></span>' if after else ""
    return (
        f'<li>{arrow}<a href="notebooks/{lesson.name}.html">'
        f'<span class="course-map-number">{lesson.number}</span> '
        f"{html.escape(lesson.title)}</a>"
        f'<span class="course-map-question">{html.escape(lesson.question)}</span>'
        f'<span class="course-map-time">{lesson.minutes} minutes, {before}</span></li>'
    )
