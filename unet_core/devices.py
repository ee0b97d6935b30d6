"""What this process can compute on: its device, its free memory, its fast type, one way to do arithmetic."""

from __future__ import annotations

import gc

import torch

from unet_core import machine
from unet_core.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_kind() -> str:
    """What runs share: "cuda" where a GPU is, else "cpu". A run keeps the kind it began with."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """The model of the device, and on a CPU how many threads compute: what its speed depends on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    capabilities = torch.cpu.get_capabilities()
    return f"{capabilities.get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"


def fast_dtype(device: str) -> str | None:
    """The 16-bit type that this device computes natively; None where there is none, as on older CPUs."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    features = torch.cpu.get_capabilities()
    return "bfloat16" if features.get("avx512_bf16") or features.get("amx_bf16") else None


def free_memory(device: str) -> int:
    """Bytes that this process could allocate there now.

    Raises
    ------
    InputError
        A GPU where this process sees none.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                "this run is one on a GPU and this process sees none",
                expected="a CUDA device",
                found=f"torch {torch.__version__}, no CUDA device",
                fix="run it where a GPU is, or on a --cluster that has some; "
                "another --to begins another run, on the CPU",
            )
        return int(torch.cuda.mem_get_info()[0])
    return machine.free_memory()


def release_memory() -> None:
    """Give back what freed tensors left with torch: other processes on the same GPU could not have it."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def exact_arithmetic() -> None:
    """One way to compute on GPUs, from here on in this process."""
    # Two modes of float32 would give two results; and an algorithm chosen by timing, many.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
