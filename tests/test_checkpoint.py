"""Model folders: whole or refused; nothing but the weights and the card decides what a model is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from strategies import SEEDS, network_specs, random_network

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, load_model, save_model
from unet_core.errors import InputError
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.volumes import Store

TEXTS = st.text(min_size=1, max_size=8)


@settings(max_examples=30)
@given(spec=network_specs(cost=1e7), seed=SEEDS, names=st.tuples(*[TEXTS] * 4), data=st.data())
def test_what_is_saved_is_loaded(spec, seed, names, data, tmp_path_factory):
    rule = data.draw(st.sampled_from(["percentiles", "mean_std"]))
    card = ModelCard(
        spec=spec,
        class_names=names[: spec.classes],
        target=data.draw(st.sampled_from(["semantic", "foreground", "boundary"])),
        normalisation=NormalisationRule(rule=rule, low=0.5),
        scale=Scale((1.5,) * spec.in_channels, (2.5,) * spec.in_channels),
        voxel_size=data.draw(st.none() | st.just((40.0, 8.0, 8.0))),
        unit=data.draw(st.none() | st.just("nanometer")),
        notes={"steps": 100, "from": list(names)},
    )
    network = random_network(spec, seed)
    folder = tmp_path_factory.mktemp("models") / "m"
    save_model(Store(folder), card, network, training={"loss": [1.0, 0.5]})
    stored = load_model(str(folder))
    assert stored.card == card
    loaded = stored.network()
    assert not loaded.training
    assert loaded.spec == spec
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_digest_is_of_card_and_weights(make_model):
    spec = UNetSpec.build(ndim=2, depth=1, base=2)
    one = load_model(str(make_model(spec, name="one"))).digest
    assert load_model(str(make_model(spec, name="same"))).digest == one
    assert load_model(str(make_model(spec, name="weights", seed=1))).digest != one
    assert load_model(str(make_model(spec, name="card", target="boundary"))).digest != one
    assert len(one) == 64


def test_how_it_was_trained_does_not_change_what_it_is(make_model):
    folder = make_model()
    digest = load_model(str(folder)).digest
    (folder / "training.json").write_text("not even JSON")
    assert load_model(str(folder)).digest == digest


def test_training_weights_are_stored_as_float32(tmp_path):
    spec = UNetSpec.build(ndim=2, depth=0, base=2)
    card = ModelCard(
        spec=spec,
        class_names=("a", "b"),
        target="semantic",
        normalisation=NormalisationRule(),
        scale=Scale((0.0,), (1.0,)),
    )
    save_model(Store(tmp_path / "m"), card, random_network(spec, 0).double())
    weights = load_file(tmp_path / "m" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as refused:
        load_model(str(folder))
    assert refused.value.exit_code == 2
    assert str(folder) in refused.value.where
    return refused.value


def edit(folder: Path, **changes) -> None:
    """Change entries of model.json; None takes one away."""
    path = folder / "model.json"
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def test_no_such_folder(tmp_path):
    error = refusal(tmp_path / "absent")
    assert error.problem == "no such model"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("missing", ["model.json", "weights.safetensors"])
def test_a_missing_file(missing, make_model):
    folder = make_model()
    (folder / missing).unlink()
    error = refusal(folder)
    assert error.problem == "this is not a whole model folder"
    assert error.found == f"no {missing}"


def test_something_else(tmp_path):
    (tmp_path / "photos").mkdir()
    assert refusal(tmp_path / "photos").found == "no model.json and no weights.safetensors"
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file").problem == "this is not a whole model folder"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"text"', "\x00"])
def test_a_description_that_is_not_one(text, make_model):
    folder = make_model()
    (folder / "model.json").write_text(text)
    error = refusal(folder)
    assert error.problem == "this model description cannot be read"
    assert error.where == f"{folder}/model.json"


@pytest.mark.parametrize("newer", [2, 99, "1"])
def test_another_format(newer, make_model):
    folder = make_model()
    edit(folder, format=newer)
    error = refusal(folder)
    assert error.problem == "this model folder has another format"
    assert (error.expected, error.found) == ("format 1", str(newer))


@pytest.mark.parametrize("entry", ["format", "spec", "class_names", "target", "normalisation", "scale"])
def test_a_missing_entry(entry, make_model):
    folder = make_model()
    edit(folder, **{entry: None})
    error = refusal(folder)
    assert error.problem == "this model description cannot be read"
    assert entry in error.found


def test_an_unknown_entry(make_model):
    folder = make_model()
    edit(folder, ensemble=3)
    assert "ensemble" in refusal(folder).found


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"scale": {"offset": [float("nan")], "spread": [1.0]}}, "scale, offset"),
        ({"scale": {"offset": ["0"], "spread": [1.0]}}, "scale, offset"),
        ({"scale": {"offset": [0.0], "spread": [0]}}, "scale, spread"),
        ({"scale": {"offset": [0.0], "spread": [-1.0]}}, "scale, spread"),
        ({"scale": {"offset": [0.0], "spread": [float("inf")]}}, "scale, spread"),
        ({"threshold": "abc"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"voxel_size": ["40", "8", "8"]}, "voxel_size"),
        ({"voxel_size": [40.0, 0.0, 8.0]}, "voxel_size"),
        ({"voxel_size": [40.0, 8.0]}, "voxel_size"),
        ({"class_names": ["background", 1]}, "class_names"),
        ({"unit": 5}, "unit"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(change, where, make_model):
    folder = make_model()
    edit(folder, **change)
    error = refusal(folder)
    assert error.where == f"{folder}/model.json, {where}"


@pytest.mark.parametrize(
    ("norm", "says"), [("group", "looks at statistics of the tile"), ("spectral", "cannot be built")]
)
def test_a_norm_that_cannot_be_tiled(norm, says, make_model):
    folder = make_model()
    spec = json.loads((folder / "model.json").read_text())["spec"]
    edit(folder, spec={**spec, "norm": norm})
    error = refusal(folder)
    assert says in error.problem
    assert error.where == f"{folder}/model.json, norm"
    assert error.found == repr(norm)


@pytest.mark.parametrize(
    ("change", "where", "expected", "found"),
    [
        ({"in_channels": 2}, "down.0.0.weight", "shape (2, 2, 3, 3, 3)", "shape (2, 1, 3, 3, 3)"),
        ({"classes": 3}, "head.bias", "shape (3,)", "shape (2,)"),
        ({"widths": (2, 5)}, "down.1.0.bias", "shape (5,)", "shape (4,)"),
        ({"upsampling": "nearest"}, "up.0.1.bias", "shape (2,)", "none"),
        ({"norm": "batch"}, "down.0.1.bias", "shape (2,)", "none"),
        (
            {"widths": (2,), "kernels": ((3, 3, 3),), "pools": ()},
            "down.1.0.bias",
            "no such tensor",
            "shape (4,)",
        ),
    ],
)
def test_weights_of_another_architecture(change, where, expected, found, make_model):
    """Whichever way card and weights disagree, the first tensor that does is named."""
    folder = make_model(UNetSpec.build(ndim=3, depth=1, base=2))
    spec = {**json.loads((folder / "model.json").read_text())["spec"], **change}
    numbers = {name: [1.0] * spec["in_channels"] for name in ("offset", "spread")}
    edit(folder, spec=spec, scale=numbers, class_names=["any"] * spec["classes"])
    error = refusal(folder)
    assert error.problem == "these weights were made for another architecture"
    assert error.where == f"{folder}/weights.safetensors, tensor {where}"
    assert (error.expected, error.found) == (expected, found)


def test_a_missing_tensor(make_model):
    folder = make_model()
    weights = load_file(folder / "weights.safetensors")
    del weights["head.bias"]
    save_file(weights, folder / "weights.safetensors")
    error = refusal(folder)
    assert (error.expected, error.found) == ("shape (2,)", "none")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(keep, make_model):
    folder = make_model()
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refusal(folder)
    assert error.problem == "these weights cannot be read"
    assert error.where == f"{folder}/weights.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, make_model):
    """Training that went astray must not give a volume of class 0 that looks like a result."""
    folder = make_model()
    weights = load_file(folder / "weights.safetensors")
    weights["head.weight"][0] = value
    save_file(weights, folder / "weights.safetensors")
    error = refusal(folder)
    assert error.where == f"{folder}/weights.safetensors, tensor head.weight"


@pytest.mark.parametrize(
    ("change", "where", "expected", "found"),
    [
        ({"class_names": ["one"]}, "class_names", "2, as the network has", "1"),
        ({"scale": {"offset": [0.0, 0.0], "spread": [1.0]}}, "scale", "1, as the network has", "2"),
        ({"scale": {"offset": [0.0], "spread": []}}, "scale", "1, as the network has", "0"),
    ],
)
def test_a_card_that_contradicts_itself(change, where, expected, found, make_model):
    folder = make_model()
    edit(folder, **change)
    error = refusal(folder)
    assert error.problem == "this model card contradicts itself"
    assert error.where == f"{folder}/model.json, {where}"
    assert (error.expected, error.found) == (expected, found)
