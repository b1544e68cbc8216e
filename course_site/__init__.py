"""The site: the lessons, the library and what was measured, as web pages.

`make site` is `python -m course_site`. Read in this order: `__main__` says what is done
one after the other. `lessons` knows each lesson's title, question and time; `pages`
makes a page of its notebook; `states` draws each widget's pictures beforehand, with
`capture` inside the lesson's kernel, and `explorers` puts a slider over them.
`course_map`, `valley`, `results` and `api` write the other pages. `links` and
`repository` know what lies outside of the site. `extension` is all that Sphinx sees.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SOURCE = BUILD / "site-source"  # what Sphinx reads
STATIC = BUILD / "site-static"  # what it copies as it is
STATES = BUILD / "site-states"  # pictures drawn beforehand, kept from build to build
