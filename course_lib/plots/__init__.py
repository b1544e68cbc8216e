"""Pictures for the lessons: each function draws on a given Axes and returns it.

Those of one lesson are in the module of its name, those of several in `common` and
`boxes`; read `common` first. Here all of them have one place: `plots.NAME(...)`.
"""

from course_lib.plots.adversaries import errors, mosaic, shelves, spread, turning
from course_lib.plots.boxes import owners
from course_lib.plots.closures import cells
from course_lib.plots.common import (
    COLORS,
    bars,
    curves,
    descent,
    heatmap,
    images,
    lines,
    races,
    tiles,
)
from course_lib.plots.explicit import touched
from course_lib.plots.keras_models import strips, windows
from course_lib.plots.losses import sharing
from course_lib.plots.regularization import histogram, valley
from course_lib.plots.rso import three
from course_lib.plots.rso_speed import channels, rates
from course_lib.plots.rules import arrows, flow

__all__ = [
    "COLORS",
    "arrows",
    "bars",
    "cells",
    "channels",
    "curves",
    "descent",
    "errors",
    "flow",
    "heatmap",
    "histogram",
    "images",
    "lines",
    "mosaic",
    "owners",
    "races",
    "rates",
    "sharing",
    "shelves",
    "spread",
    "strips",
    "three",
    "tiles",
    "touched",
    "turning",
    "valley",
    "windows",
]
