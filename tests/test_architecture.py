"""The U-Net's arithmetic: against figure 1 of the paper, against torch, and against single voxels."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import network_specs, positive_network
from torch import nn

from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.model import UNet

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
# Width and depth do not change which voxels matter; small networks leave time for many of them.
SPECS = network_specs(cost=1.5e7)


def meta_network(spec: UNetSpec) -> UNet:
    """The network without numbers: torch infers every shape and computes nothing."""
    with torch.device("meta"):
        return UNet(spec).eval()


def test_paper_network_has_the_paper_s_shape_at_every_level():
    """Figure 1, every number that it prints."""
    spec = UNetSpec.paper()
    network = meta_network(spec)
    seen: list[Shape] = []
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            module.register_forward_hook(lambda module, x, y: seen.append(tuple(y.shape)))
    logits = network(torch.empty(1, 1, 572, 572, device="meta"))
    assert logits.shape == (1, 2, 388, 388)
    assert [size for *_, size in seen] == [
        570,
        568,
        282,
        280,
        138,
        136,
        66,
        64,
        30,
        28,
        56,
        54,
        52,
        104,
        102,
        100,
        200,
        198,
        196,
        392,
        390,
        388,
        388,
    ]
    assert [channels for _, channels, *_ in seen] == [
        64,
        64,
        128,
        128,
        256,
        256,
        512,
        512,
        1024,
        1024,
        512,
        512,
        512,
        256,
        256,
        256,
        128,
        128,
        128,
        64,
        64,
        64,
        2,
    ]
    # The paper: "In total the network has 23 convolutional layers."
    assert len(seen) == 23


def test_paper_network_by_arithmetic():
    spec = UNetSpec.paper()
    levels = spec.levels((572, 572))
    assert [level.input for level in levels] == [(n, n) for n in (572, 284, 140, 68, 32)]
    assert [level.contracted for level in levels] == [(n, n) for n in (568, 280, 136, 64, 28)]
    assert [level.expand_in for level in levels] == [(n, n) for n in (392, 200, 104, 56, 28)]
    assert [level.output for level in levels] == [(n, n) for n in (388, 196, 100, 52, 28)]
    assert spec.output_shape((572, 572)) == (388, 388)
    assert spec.stride == (16, 16)
    assert spec.context == ((92, 92), (96, 96))
    # 388 is not a multiple of 16: the tile's write box is 384, its legal read box the paper's 572.
    assert spec.legal_write_shape((572, 572)) == (384, 384)
    assert spec.read_shape((384, 384)) == (572, 572)


@settings(max_examples=50)
@given(spec=network_specs(cost=float("inf")), data=st.data())
def test_arithmetic_is_what_torch_does(spec, data):
    write = tuple(s * data.draw(st.integers(1, 3)) for s in spec.stride)
    read = spec.read_shape(write)
    network = meta_network(spec)
    seen: dict[nn.Module, tuple[Shape, Shape]] = {}
    for module in (*network.down, *network.merge):
        module.register_forward_hook(
            lambda module, x, y: seen.update({module: (tuple(x[0].shape[2:]), tuple(y.shape[2:]))})
        )
    logits = network(torch.empty(1, spec.in_channels, *read, device="meta"))
    assert logits.shape == (1, spec.classes, *spec.output_shape(read))
    assert all(o >= w for o, w in zip(spec.output_shape(read), write))
    levels = spec.levels(read)
    for index, level in enumerate(levels):
        assert seen[network.down[index]] == (level.input, level.contracted)
        if index < spec.depth:
            assert seen[network.merge[index]] == (level.expand_in, level.output)
    assert levels[-1].expand_in == levels[-1].output == levels[-1].contracted


@given(spec=network_specs(cost=float("inf")), data=st.data())
def test_read_shapes_are_the_smallest_legal_ones(spec, data):
    strides = tuple(data.draw(st.integers(1, 5)) for _ in range(spec.ndim))
    write = tuple(s * n for s, n in zip(spec.stride, strides))
    read = spec.read_shape(write)
    spec.levels(read)
    assert spec.legal_write_shape(read) == write
    assert spec.read_shape(tuple(w - s + 1 for w, s in zip(write, spec.stride))) == read
    for axis in range(spec.ndim):
        smaller = tuple(n - (a == axis) for a, n in enumerate(read))
        # One voxel less is either not legal or leaves an output that does not hold the write box.
        if is_legal(spec, smaller):
            assert spec.output_shape(smaller)[axis] < write[axis]
            continue
        with pytest.raises(InputError, match="not legal") as refused:
            spec.levels(smaller)
        legal = spec.read_shape(spec.legal_write_shape(smaller))
        assert str(legal) in refused.value.expected
        assert is_legal(spec, legal)


@given(spec=network_specs(cost=float("inf")), data=st.data())
def test_illegal_inputs_are_refused_by_arithmetic_exactly_where_torch_would_go_wrong(spec, data):
    """Legal means: every pooling divides evenly, every skip is large enough to be cropped."""
    axis = data.draw(st.integers(0, spec.ndim - 1))
    size = spec.read_shape(spec.stride)[axis] + data.draw(st.integers(-12, 12))
    shape = tuple(size if a == axis else n for a, n in enumerate(spec.read_shape(spec.stride)))
    assert is_legal(spec, shape) == plainly_legal(spec, axis, size)


def is_legal(spec: UNetSpec, shape: Shape) -> bool:
    try:
        spec.levels(shape)
    except InputError:
        return False
    return True


def plainly_legal(spec: UNetSpec, axis: int, n: int) -> bool:
    """The network walked down and up along one axis, position by position of the paper's figure."""
    skips = []
    for level in range(spec.depth):
        n -= 2 * (spec.kernels[level][axis] - 1)
        skips.append(n)
        if n < 1 or n % spec.pools[level][axis]:
            return False
        n //= spec.pools[level][axis]
    n -= 2 * (spec.kernels[-1][axis] - 1)
    for level in reversed(range(spec.depth)):
        if n < 1:
            return False
        n *= spec.pools[level][axis]
        n -= spec.pools[level][axis] - 1 if spec.upsampling == "nearest" else 0
        if n < 1 or skips[level] < spec.crop_lower(level)[axis] + n:
            return False
        n -= 2 * (spec.kernels[level][axis] - 1)
    return n >= 1


def assert_depends_on(spec: UNetSpec, start: Shape, stop: Shape, low: Shape, high: Shape) -> None:
    """The outputs [start, stop) depend on the outermost voxels of [low, high), and on no voxel outside.

    An infinite voxel shows in every output that depends on it: `positive_network`.
    """
    network = positive_network(spec)
    # Room beyond each side, in a legal input.
    shape = spec.read_shape(tuple(b + 2 * s for b, s in zip(stop, spec.stride)))
    x = torch.from_numpy(1 + np.random.default_rng(0).random((1, spec.in_channels, *shape)))

    def outputs(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(x)[(..., *(slice(a, b) for a, b in zip(start, stop)))]

    before = outputs(x)
    assert before.isfinite().all()
    outside = torch.full_like(x, torch.inf)
    inside = (..., *(slice(a, b) for a, b in zip(low, high)))
    outside[inside] = x[inside]
    assert torch.equal(outputs(outside), before), "voxels outside the context change the outputs"

    for axis in range(spec.ndim):
        for edge in (low[axis], high[axis] - 1):
            place = [(a + b) // 2 for a, b in zip(low, high)]
            place[axis] = edge
            changed = x.clone()
            changed[(..., *place)] = torch.inf
            assert not outputs(changed).isfinite().all(), f"voxel {place} changes nothing"


@settings(max_examples=40)
@given(spec=SPECS, data=st.data())
def test_context_is_sufficient_and_tight_voxel_by_voxel(spec, data):
    """A write box whose corners are multiples of the stride needs [a - lower, b + upper): all and no more.

    For such boxes the statement is exact on both sides: every pooling window at the rim is used whole.
    """
    start = tuple(s * data.draw(st.integers(1, 2)) for s in spec.stride)
    stop = tuple(a + s * data.draw(st.integers(1, 2)) for a, s in zip(start, spec.stride))
    lower, upper = spec.context
    # Volume position p is input position p + lower: the input begins `lower` before the volume.
    high = tuple(b + below + above for b, below, above in zip(stop, lower, upper))
    assert_depends_on(spec, start, stop, start, high)


@settings(max_examples=30)
@given(spec=SPECS, data=st.data())
def test_dependence_of_any_outputs_is_exact_voxel_by_voxel(spec, data):
    """Off the stride too: `dependence` is where the outermost voxels that matter lie, per axis."""
    start = tuple(data.draw(st.integers(1, 2 * s)) for s in spec.stride)
    stop = tuple(a + data.draw(st.integers(1, s + 1)) for a, s in zip(start, spec.stride))
    spans = [spec.dependence(axis, a, b) for axis, (a, b) in enumerate(zip(start, stop))]
    assert_depends_on(spec, start, stop, tuple(a for a, _ in spans), tuple(b for _, b in spans))


def test_nearest_loses_one_voxel_per_level_and_says_so():
    """Nearest with a 2x2 convolution has no exact voxel at the upper border: cropped, and said so."""
    transpose = UNetSpec.build(ndim=2, depth=1)
    nearest = UNetSpec.build(ndim=2, depth=1, upsampling="nearest")
    assert transpose.output_shape((20, 20)) == (4, 4)
    assert nearest.output_shape((20, 20)) == (3, 3)
    assert transpose.context == ((8, 8), (8, 8))
    assert nearest.context == ((8, 8), (10, 10))


@settings(max_examples=30)
@given(spec=SPECS)
def test_output_voxel_j_lies_on_input_voxel_j_plus_lower(spec):
    """With kernels that only pass their middle on, the skip at the top gives back the input's own positions,
    and the whole network a voxel of the same pooling window."""
    lower, _ = spec.context
    network = UNet(UNetSpec(**{**spec.to_dict(), "norm": "none", "in_channels": 1})).double().eval()
    shape = spec.read_shape(spec.stride)
    for axis, through in product(range(spec.ndim), ("skip", "bottom")):
        _pass_on(network, through)
        line = torch.arange(shape[axis], dtype=torch.float64)
        x = line.reshape([-1 if a == axis else 1 for a in range(spec.ndim)]).expand(1, 1, *shape)
        with torch.inference_mode():
            found = network(x)[0, 0]
        for other in reversed([a for a in range(spec.ndim) if a != axis]):
            assert torch.equal(found.amax(other), found.amin(other))
            found = found.select(other, 0)
        true = line[: len(found)] + lower[axis]
        if through == "skip" or spec.depth == 0:
            assert torch.equal(found, true)
        else:
            # Max pooling of rising numbers gives each window's last one.
            ahead = found - true
            assert ahead.min() >= 0
            assert ahead.max() < spec.stride[axis]


def _pass_on(network: UNet, through: str) -> None:
    """Every convolution passes on channel 0 of its middle voxel; where two paths meet, one of them."""
    with torch.no_grad():
        for name, module in network.named_modules():
            if not isinstance(module, CONVOLUTIONS):
                continue
            module.weight.zero_()
            if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                module.weight[0, 0] = 1  # all voxels of a window are their parent
                continue
            # The first convolution after the paths meet: the skip's channels come first.
            meets = name.startswith("merge.") and name.endswith(".0")
            channel = module.in_channels // 2 if meets and through == "bottom" else 0
            first_tap = name.startswith("up.")
            tap = (0 if first_tap else k // 2 for k in module.kernel_size)
            module.weight[(0, channel, *tap)] = 1


@settings(max_examples=50)
@given(spec=network_specs(cost=float("inf")), data=st.data())
def test_macs_are_those_that_torch_does(spec, data):
    read = spec.read_shape(tuple(s * data.draw(st.integers(1, 3)) for s in spec.stride))
    counted = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        taps = int(np.prod(module.kernel_size)) * module.in_channels * module.out_channels
        # A convolution works once per output voxel, a transposed one once per input voxel.
        side = inputs[0] if "Transpose" in type(module).__name__ else output
        counted += taps * int(np.prod(side.shape[2:]))

    network = meta_network(spec)
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            module.register_forward_hook(count)
    network(torch.empty(1, spec.in_channels, *read, device="meta"))
    assert spec.macs(read) == counted
    assert spec.macs_per_voxel() <= counted / np.prod(spec.legal_write_shape(read))


@given(spec=network_specs(cost=float("inf")))
def test_a_spec_survives_json(spec):
    assert UNetSpec(**json.loads(json.dumps(spec.to_dict()))) == spec


def test_anisotropic_levels_leave_z_alone():
    spec = UNetSpec.build(ndim=3, depth=3, base=4, anisotropic_levels=2)
    assert spec.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert spec.pools == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert spec.stride == (2, 8, 8)
    # z sees only the two levels at the bottom: a network of depth 1.
    assert spec.context[0][0] == UNetSpec.build(ndim=3, depth=1).context[0][0]


@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
def test_norms_that_look_at_the_tile_are_refused_with_the_reason(norm):
    with pytest.raises(InputError, match="looks at statistics of the tile") as refused:
        UNetSpec.build(ndim=2, depth=1, norm=norm)
    assert refused.value.found == repr(norm)
    assert refused.value.where == "norm"
    assert refused.value.exit_code == 2


GOOD = {
    "in_channels": 1,
    "classes": 2,
    "widths": (4, 8),
    "kernels": ((3, 3), (3, 3)),
    "pools": ((2, 2),),
}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"norm": "spectral"}, "norm"),
        ({"in_channels": 0}, "in_channels"),
        ({"classes": 1}, "classes"),
        ({"widths": ()}, "widths"),
        ({"widths": (4, 0)}, "widths"),
        ({"kernels": ((3, 3),)}, "kernels"),
        ({"kernels": ((3, 3), (2, 3))}, "kernels"),
        ({"kernels": ((3, 3), (-1, 3))}, "kernels"),
        ({"kernels": ((3, 3), (3, 3, 3))}, "kernels and pools"),
        ({"kernels": ((3,), (3,)), "pools": ((2,),)}, "kernels and pools"),
        ({"pools": ()}, "pools"),
        ({"pools": ((2, 0),)}, "pools"),
        ({"upsampling": "bilinear"}, "upsampling"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_impossible_networks_are_refused_by_name(change, where):
    UNetSpec(**GOOD)
    with pytest.raises(InputError, match="cannot be built") as refused:
        UNetSpec(**{**GOOD, **change})
    assert refused.value.where == where


@pytest.mark.parametrize(
    "arguments",
    [
        {"ndim": 1, "depth": 2},
        {"ndim": 4, "depth": 2},
        {"ndim": 3, "depth": -1},
        {"ndim": 3, "depth": 1, "anisotropic_levels": 2},
        {"ndim": 2, "depth": 2, "anisotropic_levels": 1},
    ],
)
def test_impossible_families_are_refused(arguments):
    with pytest.raises(InputError):
        UNetSpec.build(**arguments)


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(InputError, match="wrong number of axes"):
        UNetSpec.paper().levels((572, 572, 572))
