"""One spelling per place: the same folder has the same name in every run record."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root, `~` and `..` resolved, so that `../x` and `/data/x` are one input to a run.

    Links are kept as they were named, but for those that a `..` comes after: what lies above a link is its
    target's parent, and no text can tell which that is.
    """
    full = Path(path).expanduser().absolute()
    if ".." not in full.parts:
        return full
    last = len(full.parts) - full.parts[::-1].index("..")
    return Path(os.path.realpath(Path(*full.parts[:last])), *full.parts[last:])
