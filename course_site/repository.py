"""Where the repository lies on the web: one setting, for all links that need it.

The setting is `Repository` under `[project.urls]` in pyproject.toml. Where there is
none, a GitHub workflow knows its own repository, so a fork's site leads to the fork.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from course_lib.lessons.working_copy import WORK
from course_site import ROOT

_SETTING = re.compile(r"^Repository *= *(.+?) *$", re.M)
_ADDRESS = re.compile(r'"(https://github\.com/[\w.-]+/[\w.-]+)"')


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub, such as https://github.com/owner/name."""

    address: str
    branch: str = "main"

    @property
    def name(self) -> str:
        """Return owner/name."""
        return self.address.removeprefix("https://github.com/")

    def file(self, path: str) -> str:
        """Return the address of a file, to be read."""
        return f"{self.address}/blob/{self.branch}/{path}"

    def binder(self, lesson: str) -> str:
        """Return the address that starts a lesson's copy on Binder."""
        place = quote(f"lab/tree/{WORK.name}/{lesson}.ipynb", safe="")
        base = "https://mybinder.org/v2/gh"
        return f"{base}/{self.name}/{self.branch}?urlpath={place}"

    def colab(self, lesson: str) -> str:
        """Return the address that opens a lesson in Colab."""
        base = "https://colab.research.google.com/github"
        return f"{base}/{self.name}/blob/{self.branch}/notebooks/{lesson}.ipynb"


def find(root: Path = ROOT) -> Repository | None:
    """Return the repository, or None where nobody has said its address.

    Raises:
        ValueError: the setting is no such address.
    """
    found = _SETTING.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if found:
        address = _ADDRESS.fullmatch(found[1])
        if not address:
            raise ValueError(
                f"pyproject.toml: Repository is {found[1]}; wanted "
                '"https://github.com/OWNER/NAME", with nothing behind it.'
            )
        return Repository(address[1])
    name = os.environ.get("GITHUB_REPOSITORY")
    return Repository(f"https://github.com/{name}") if name else None
