"""Which files paths mean: themselves, a folder's images, what matches a pattern; in natural order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from unet_core.errors import InputError
from unet_core.paths import absolute
from unet_core.sources.stack import natural_order

_KINDS = {
    "TIFF": (".tif", ".tiff", ".btf", ".tf8"),
    "HDF5": (".h5", ".hdf5", ".hdf", ".he5"),
    "NPZ": (".npz", ".npy"),
    "image": (".png", ".jpg", ".jpeg", ".bmp"),
}
_WILD = frozenset("*?[")


def files_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths of the files that are meant; looks at names alone.

    Parameters
    ----------
    paths
        Files, folders whose readable files are meant, quoted patterns such as "slices/*.png".

    Raises
    ------
    InputError
        No such file, a pattern that nothing matches, a folder without a readable file, no path at all.
    """
    files: list[str] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = [str(p) for p in path.iterdir() if kind_of(str(p)) and not p.name.startswith(".")]
            if not inside:
                names = sorted(p.name for p in path.iterdir())
                raise InputError(
                    "this folder holds no file that can be read",
                    where=path.absolute(),
                    expected=readable(),
                    found=f"{len(names)} of other names, such as {names[0]}" if names else "nothing",
                    fix="name the files, or the folder that they are in",
                )
            files.extend(inside)
        elif path.is_file():
            files.append(str(path))
        elif not _WILD & set(text):
            raise InputError("no such file", where=text, fix="check the path")
        else:
            files.extend(_matches(path.absolute(), text))
    if not files:
        raise InputError("no source was named", expected=readable())
    return tuple(sorted((str(absolute(f)) for f in files), key=natural_order))


def _matches(pattern: Path, text: str) -> Iterator[str]:
    root = Path(pattern.anchor)
    found = [str(p) for p in root.glob(str(pattern.relative_to(root))) if p.is_file()]
    if not found:
        folder = Path(*takewhile(lambda part: not _WILD & set(part), pattern.parts))
        there = sum(1 for _ in folder.iterdir()) if folder.is_dir() else None
        raise InputError(
            "no file matches this pattern",
            where=text,
            found=f"no folder {folder}" if there is None else f"{there} of other names in {folder}",
            fix="check the path",
        )
    yield from found


def kind_of(path: str) -> str:
    """The kind of file that its suffix tells, empty where it is none that is read."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "")


def volume_name(file: str) -> str:
    """The name of a file without the suffix that says its kind: "a.1" of "images/a.1.ome.tif"."""
    return Path(file).stem.removesuffix(".ome")


def readable() -> str:
    """All suffixes that are read, for messages."""
    return ", ".join(suffix for suffixes in _KINDS.values() for suffix in suffixes)
