"""The forward pass alone against OpenVINO running the same network, at the same shapes and precisions.

    python tests/benchmarks/forward.py [--size 132 188] [--planar-size 572] [--repeat 4] [--peers PYTHON]

Both in one process of the interpreter that has OpenVINO, with a worker's environment, in turns. `--size`:
edges of the cubes that 3D networks read, rounded down to legal ones; `--only 3d-16` takes some of the cases.

Counted on both sides: from a float32 array in the order z, y, x to float32 logits of the two classes, so ours
with the change of type and layout, and with the channels that fill up. What favours OpenVINO: it compiles for
one shape, which is not counted, and takes input and gives output without a copy. What favours us: our
pooling and first layer were written for these networks, while it takes a graph that was traced.
Errors are against torch's own float32 layers. Both use oneDNN's kernels: float32 may agree to the bit. What
types OpenVINO's convolutions really ran in is read from its compiled graph. The aim is 0.75 of its speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from side_by_side import in_turns, of_process, print_table

CASES = {"3d-16": (3, 16, 3), "3d-32": (3, 32, 3), "2d-64": (2, 64, 4)}  # axes, base, depth


def measure(case: str, edge: int, dtype: str, repeats: int) -> dict[str, Any]:
    import openvino
    import torch
    from torch import nn

    from unet_core.architecture import UNetSpec
    from unet_core.budget import slab_planes
    from unet_core.devices import DTYPES
    from unet_core.model import UNet, channels_last
    from unet_core.prepared import prepare
    from unet_core.streamed import streamed

    ndim, base, depth = CASES[case]
    spec = UNetSpec.build(ndim=ndim, depth=depth, base=base)
    shape = spec.read_shape(spec.legal_write_shape((edge,) * ndim))
    torch.manual_seed(0)
    network = UNet(spec).eval()
    x = torch.rand(1, 1, *shape)
    with torch.inference_mode():
        expected = network(x)
    prepared = prepare(network, dtype=DTYPES[dtype])
    planes = slab_planes(spec, shape, dtype, "cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.__class__ = nn.Conv3d  # without the channels that fill up for torch's sake
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    converted = openvino.convert_model(network, example_input=x, input=[1, 1, *shape])
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()

    @torch.inference_mode()
    def ours() -> Any:
        slabs = x.to(dtype=DTYPES[dtype], memory_format=channels_last(ndim)).split(planes, dim=2)
        parts = [part[:, : spec.classes].float() for part in streamed(prepared, slabs, shape, planes)]
        return torch.cat(parts, dim=2).contiguous()

    def theirs() -> Any:
        return request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)[0]

    def timed(work: Any) -> dict[str, Any]:
        began = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - began}

    here, there = ours(), torch.from_numpy(theirs().copy())
    seconds = [run["seconds"] for run in in_turns(repeats, lambda: timed(ours), lambda: timed(theirs))]
    ran = {
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    }
    gflop = 2 * spec.macs(shape) / 1e9
    return {
        "case": case,
        "read": shape[0],
        "dtype": dtype,
        "openvino_ran_in": "/".join(sorted(ran)),
        "seconds": round(seconds[0], 4),
        "openvino_seconds": round(seconds[1], 4),
        "gflop_s": round(gflop / seconds[0], 1),
        "openvino_gflop_s": round(gflop / seconds[1], 1),
        "speed_over_openvino": round(seconds[1] / seconds[0], 3),
        "difference": float((here - there).abs().max()),
        "error": float((here - expected).abs().max()),
        "openvino_error": float((there - expected).abs().max()),
        "largest_logit": float(expected.abs().max()),
    }


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, nargs="+", default=[132, 188])
    parser.add_argument("--planar-size", type=int, default=572)
    parser.add_argument("--only", action="append", choices=CASES)
    parser.add_argument("--dtype", action="append", choices=("bfloat16", "float32"))
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="has openvino")
    parser.add_argument("--one", metavar="CASE,EDGE,DTYPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, edge, dtype = options.one.split(",")
        print(json.dumps(measure(case, int(edge), dtype, options.repeat)))
        return
    from flows.environment import thread_environment

    rows = [
        of_process(
            options.peers,
            "forward.py",
            "--one",
            f"{case},{edge},{dtype}",
            "--repeat",
            options.repeat,
            environment=thread_environment(options.threads),
        )
        for case in options.only or CASES
        for edge in (options.size if CASES[case][0] == 3 else [options.planar_size])
        for dtype in options.dtype or ("bfloat16", "float32")
    ]
    print(json.dumps(rows, indent=1))
    print_table(rows)


if __name__ == "__main__":
    main()
