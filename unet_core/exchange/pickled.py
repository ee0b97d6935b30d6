"""Plain PyTorch files (.pt, .pth) as tensors by name, read by an unpickler that knows tensors only."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile

import torch
from torch import Tensor

from unet_core.errors import InputError

_HOW = "save it as torch.save(network.state_dict(), FILE), or better by safetensors.torch.save_file"


def read_pickled(data: bytes, *, where: str) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`.

    Raises
    ------
    InputError
        The file holds anything but a dict of tensors: code, whole modules, TorchScript, optimiser states.
    """
    if _is_torchscript(data):
        raise InputError(
            "this is a TorchScript archive: loading it would run its code",
            where=where,
            expected="a state dict",
            fix=_HOW,
        )
    try:
        with warnings.catch_warnings():
            # Files of other programs may have another pickle protocol; what matters is checked below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "this file holds more than tensors: loading it could run its code, so it is not loaded",
            where=where,
            expected="a dict of tensors by name",
            found=str(error).splitlines()[-1] or "unsupported objects",
            fix=_HOW,
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise InputError("this PyTorch file cannot be read", where=where, found=_first_line(error)) from None
    if not isinstance(found, dict) or not found:
        raise InputError(
            "this file holds no state dict",
            where=where,
            expected="a dict of tensors by name",
            found=type(found).__name__,
            fix=_HOW,
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                "this file is not a plain state dict",
                where=where,
                expected="a dict of tensors by name",
                found=f"{name!r}: {type(value).__name__}",
                fix=_HOW,
            )
    return found


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _first_line(error: Exception) -> str:
    # A KeyError by itself is only the key.
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
