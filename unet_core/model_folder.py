"""What a model folder tells without torch, so that a broken one is refused before seconds of loading.

`unet_core.checkpoint` reads the rest.
"""

from __future__ import annotations

import json
from typing import Any

from unet_core.errors import InputError
from unet_core.volumes import Store

FORMAT = 1
DESCRIPTION, WEIGHTS = "model.json", "weights.safetensors"
AGAIN = "copy the model folder again, or train again"
_LENGTH = 8  # bytes, little-endian, before a safetensors header: how long that is


def require_model(url: str) -> None:
    """Look at a model folder, as far as that takes no time.

    Raises
    ------
    InputError
        No such folder, a file missing, a description that is not one, weights that are cut short.
    """
    store = Store(url)
    description, _ = read_folder(store, weights=not store.remote)
    document_of(description, where=f"{store.url}/{DESCRIPTION}")


def read_folder(store: Store, *, weights: bool = True) -> tuple[bytes, bytes]:
    """The bytes of the description, and of the weights where they are wanted.

    Raises
    ------
    InputError
        No such folder, a file missing, weights that are cut short.
    """
    if not store.exists():
        raise InputError("no such model", where=store.url, fix="train one: unet-flows train --help")
    wanted = (DESCRIPTION, WEIGHTS) if weights else (DESCRIPTION,)
    files = {name: store.read(name) for name in wanted}
    if missing := [name for name, data in files.items() if data is None]:
        raise InputError(
            "this is not a whole model folder",
            where=store.url,
            expected=f"{DESCRIPTION} and {WEIGHTS}",
            found=f"no {' and no '.join(missing)}",
            fix="name the folder that `train` or `import` wrote",
        )
    if weights:
        require_whole(files[WEIGHTS] or b"", where=f"{store.url}/{WEIGHTS}")
    return files[DESCRIPTION] or b"", files.get(WEIGHTS) or b""


def document_of(description: bytes, *, where: str) -> dict[str, Any]:
    """The entries of a model.json but for its format; InputError where it is not one."""
    problem, expected = "this model description cannot be read", "JSON, as `train` writes it"
    try:
        document = json.loads(description)
    except ValueError as error:
        raise InputError(
            problem, where=where, expected=expected, found=f"not JSON: {error}", fix=AGAIN
        ) from None
    if not isinstance(document, dict) or "format" not in document:
        found = "no entry format" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise InputError(problem, where=where, expected="a table with format 1", found=found, fix=AGAIN)
    version = document.pop("format")
    if version != FORMAT:
        raise InputError(
            "this model folder has another format",
            where=where,
            expected=f"format {FORMAT}",
            found=version,
            fix="update unet-flows",
        )
    return document


def require_whole(weights: bytes, *, where: str) -> None:
    """Refuse a safetensors file that is shorter or longer than its header says.

    The format: https://github.com/huggingface/safetensors#format. InputError.
    """
    length = int.from_bytes(weights[:_LENGTH], "little")
    try:
        header = json.loads(weights[_LENGTH : _LENGTH + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = f"{_LENGTH + length + max(ends, default=0):,} bytes, as its header says"
        whole = len(weights) == _LENGTH + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        expected, whole = "a safetensors file", False
    if not whole:
        raise InputError(
            "these weights cannot be read",
            where=where,
            expected=expected,
            found=f"{len(weights):,} bytes: cut short, or of another kind",
            fix=AGAIN,
        )
