"""Imports: the same weights to the bit, nothing run that was read, one clear error for everything else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from strategies import SEEDS, network_specs, random_network

from flows import cli
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import adopt, load_model
from unet_core.errors import InputError
from unet_core.exchange import import_model
from unet_core.exchange.shapes import infer_spec, unwrapped
from unet_core.model import UNet

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = UNetSpec.build(ndim=2, depth=1, base=2)


def refusal(source: Path | str, to: Path, **options) -> InputError:
    with pytest.raises(InputError) as refused:
        import_model(str(source), str(to), **options)
    assert not to.exists() or to.name == "there", "nothing was written"
    assert refused.value.where
    return refused.value


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def package(path: Path, rdf: dict, **files: bytes) -> Path:
    """A zip with an rdf.yaml and files; names may be anything."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(rdf))
        for name, content in files.items():
            archive.writestr(name, content)
    return path


class TestStateDicts:
    @settings(max_examples=40)
    @given(spec=network_specs(cost=1e7))
    def test_shapes_say_which_network_it_is(self, spec):
        known = replace(spec, dropout=0.5, upsampling=spec.upsampling if spec.depth else "transpose")
        with torch.device("meta"):
            shapes = {name: torch.empty_like(t) for name, t in UNet(spec).state_dict().items()}
        tensors = {name: torch.zeros(t.shape) for name, t in shapes.items()}
        assert infer_spec(tensors, where="here") == known

    @pytest.mark.parametrize("norm", ["none", "batch"])
    @pytest.mark.parametrize("kind", ["safetensors", "pt", "pth"])
    def test_tensors_alone_make_the_same_model(self, kind, norm, tmp_path_factory):
        spec = UNetSpec.build(ndim=3, depth=2, base=2, anisotropic_levels=1, upsampling="nearest", norm=norm)
        folder = tmp_path_factory.mktemp("state")
        network = random_network(spec, 0)
        imported = import_model(str(write(folder / f"w.{kind}", network.state_dict())), str(folder / "model"))
        stored = load_model(imported.url)
        assert stored.card.spec == spec
        after = stored.network().state_dict()
        assert network.state_dict().keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in network.state_dict().items())
        assert len(imported.assumed) == 4

    @pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
    def test_names_as_wrappers_write_them(self, wrapper):
        tensors = random_network(SPEC, 0).state_dict()
        wrapped = {wrapper + name: tensor for name, tensor in tensors.items()}
        assert unwrapped(wrapped).keys() == tensors.keys()
        assert infer_spec(tensors, where="here") == SPEC

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_become_float32(self, dtype, tmp_path):
        tensors = {n: t.to(dtype) for n, t in random_network(SPEC, 0).state_dict().items()}
        imported = import_model(str(write(tmp_path / "w.pt", tensors)), str(tmp_path / "m"))
        after = load_model(imported.url).network().state_dict()
        assert all(torch.equal(tensor.float(), after[name]) for name, tensor in tensors.items())

    @pytest.mark.parametrize("form", ["toml", "json", "beside", "a model folder's"])
    def test_what_the_tensors_do_not_say(self, form, tmp_path, make_model):
        source = write(tmp_path / "w.safetensors", random_network(SPEC, 0).state_dict())
        card = {"class_names": ["outside", "cell"], "scale": {"offset": [3.0], "spread": [2.0]}}
        text = 'class_names = ["outside", "cell"]\n[scale]\noffset = [3.0]\nspread = [2.0]\n'
        spec: Path | None = tmp_path / "card.toml"
        if form == "toml":
            spec.write_text(text)
        elif form == "json":
            spec = tmp_path / "card.json"
            spec.write_text(json.dumps(card))
        elif form == "beside":
            (tmp_path / "w.toml").write_text(text)
            spec = None
        else:
            spec = make_model(SPEC, class_names=("outside", "cell")) / "model.json"
        imported = import_model(str(source), str(tmp_path / "m"), spec=None if spec is None else str(spec))
        assert imported.card.class_names == ("outside", "cell")
        assert imported.card.scale.offset == ((0.0,) if "folder" in form else (3.0,))
        assert bool(imported.assumed) == ("folder" not in form)

    def test_a_spec_that_is_stated_is_kept(self, tmp_path):
        source = write(tmp_path / "w.pt", random_network(SPEC, 0).state_dict())
        (tmp_path / "w.json").write_text(json.dumps({"spec": {**SPEC.to_dict(), "dropout": 0.25}}))
        assert import_model(str(source), str(tmp_path / "m")).card.spec.dropout == 0.25

    @pytest.mark.parametrize(
        ("text", "where", "found"),
        [
            ("{", "w.json", "Expecting"),
            ("[]", "w.json", "list"),
            ('{"layers": 5}', "w.json", "layers"),
            ('{"class_names": ["one"]}', "w.json, class_names", "1"),
            ('{"class_names": "one"}', "w.json, class_names", "'one'"),
            ('{"class_names": 3}', "w.json, class_names", "3"),
            ('{"scale": {"offset": 0, "spread": 1}}', "w.json, scale, offset", "0"),
            ('{"normalisation": "percentiles"}', "w.json, normalisation", "'percentiles'"),
            ('{"normalisation": {"low": "1"}}', "w.json, normalisation, low", "'1'"),
            ('{"voxel_size": "1,1,1"}', "w.json, voxel_size", "'1,1,1'"),
            ('{"spec": {"widths": [2, 4]}}', "w.json, spec", "no entry in_channels"),
            ('{"spec": 5}', "w.json, spec", "5"),
        ],
    )
    def test_a_description_that_does_not_fit(self, text, where, found, tmp_path):
        source = write(tmp_path / "w.pt", random_network(SPEC, 0).state_dict())
        (tmp_path / "w.json").write_text(text)
        error = refusal(source, tmp_path / "m")
        assert where in error.where
        assert found in error.found

    @pytest.mark.parametrize(
        ("change", "tensor", "expected", "found"),
        [
            ({"down.1.2.weight": (4, 5, 3, 3)}, "down.1.2.weight", "(4, 4, 3, 3)", "(4, 5, 3, 3)"),
            ({"down.1.2.bias": None}, "down.1.2.bias", "(4,)", "none"),
            ({"attention.weight": (2, 2)}, "attention.weight", "no such tensor", "(2, 2)"),
            ({"head.weight": None}, "head.weight", "2 or 3 axes", "none"),
            ({"up.0.weight": (4,)}, "up.0.weight", "2 or 3 axes", "(4,)"),
            ({"head.weight": (1, 2, 1, 1), "head.bias": (1,)}, "classes", "at least 2", "1"),
            ({"down.0.0.weight": (2, 1, 2, 2)}, "kernels", "odd sizes", "(2, 2)"),
        ],
    )
    def test_another_architecture(self, change, tensor, expected, found, tmp_path):
        tensors = dict(random_network(SPEC, 0).state_dict())
        for name, shape in change.items():
            tensors.pop(name, None)
            if shape is not None:
                tensors[name] = torch.ones(shape)
        error = refusal(write(tmp_path / "w.safetensors", tensors), tmp_path / "m")
        assert tensor in error.where
        assert expected in error.expected
        assert found in error.found

    def test_a_network_of_somebody_else(self, tmp_path):
        other = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 2, 1))
        error = refusal(write(tmp_path / "w.pt", other.state_dict()), tmp_path / "m")
        assert error.problem == "these are not the weights of our U-Net"
        assert "0.bias, 0.weight, 1.bias and 1 more" in error.found

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.to(torch.complex64),  # would lose half of itself
            lambda t: t.to(torch.float8_e4m3fn),
            lambda t: t.to_sparse(),
            lambda t: t.to("meta"),
        ],
        ids=["complex", "float8", "sparse", "meta"],
    )
    def test_weights_that_are_not_plain(self, change, tmp_path):
        state = random_network(SPEC, 0).state_dict()
        state["head.weight"] = change(state["head.weight"])
        torch.save(state, tmp_path / "weights.pt")
        error = refusal(tmp_path / "weights.pt", tmp_path / "out")
        assert "head.weight" in error.where
        assert "plain" in error.problem

    def test_weights_that_are_no_numbers(self, tmp_path):
        tensors = random_network(SPEC, 0).state_dict()
        tensors["head.bias"][0] = float("nan")
        assert "head.bias" in refusal(write(tmp_path / "w.pt", tensors), tmp_path / "m").where


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class TestNothingIsRun:
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_pickle_with_code(self, wrapped, tmp_path):
        mark = tmp_path / "ran"
        content = {"down.0.0.weight": Bomb(mark)}
        path = tmp_path / "w.pt"
        torch.save(content, path) if wrapped else path.write_bytes(pickle.dumps(content, protocol=2))
        error = refusal(path, tmp_path / "m")
        assert "could run its code, so it is not loaded" in error.problem
        assert "state_dict" in error.fix
        assert not mark.exists()

    def test_a_whole_module(self, tmp_path):
        torch.save(random_network(SPEC, 0), tmp_path / "w.pth")
        assert "could run its code" in refusal(tmp_path / "w.pth", tmp_path / "m").problem

    def test_a_torchscript_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr("net/constants.pkl", b"")
            archive.writestr("net/code/__torch__.py", "import os")
        assert "TorchScript" in refusal(tmp_path / "w.pt", tmp_path / "m").problem

    def test_a_description_with_code(self, tmp_path):
        mark = tmp_path / "ran"
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            archive.writestr("rdf.yaml", f"weights: !!python/object/apply:os.system ['touch {mark}']")
        assert "cannot be read" in refusal(tmp_path / "p.zip", tmp_path / "m").problem
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"model": {"w": torch.ones(1)}, "epoch": 3}, "'model': dict"),
            ({0: torch.ones(1)}, "0: Tensor"),
            ([torch.ones(1)], "list"),
            ({}, "dict"),
        ],
    )
    def test_something_else_than_a_state_dict(self, content, found, tmp_path):
        torch.save(content, tmp_path / "w.pt")
        error = refusal(tmp_path / "w.pt", tmp_path / "m")
        assert error.found == found

    @pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04 and no more"])
    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "p.zip"])
    def test_damaged_files(self, name, data, tmp_path):
        (tmp_path / name).write_bytes(data)
        assert name in refusal(tmp_path / name, tmp_path / "m").where


class TestPackages:
    STATE = random_network(SPEC, 0).state_dict()

    def pickled(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.STATE, buffer)
        return buffer.getvalue()

    def test_a_package_of_somebody_who_used_our_network(self, tmp_path):
        data = self.pickled()
        entry = {"source": "./w.pt", "sha256": hashlib.sha256(data).hexdigest()}
        source = package(tmp_path / "p.zip", {"weights": {"pytorch_state_dict": entry}}, **{"w.pt": data})
        imported = import_model(str(source), str(tmp_path / "m"))
        after = load_model(imported.url).network().state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in self.STATE.items())

    def test_a_package_with_one_flipped_byte(self, tmp_path):
        entry = {"source": "w.pt", "sha256": hashlib.sha256(b"other").hexdigest()}
        rdf = {"weights": {"pytorch_state_dict": entry}}
        source = package(tmp_path / "p.zip", rdf, **{"w.pt": self.pickled()})
        error = refusal(source, tmp_path / "m")
        assert error.problem == "this package is damaged"
        assert "w.pt" in error.where

    @pytest.mark.parametrize(
        "name", ["../w.pt", "/etc/passwd", "a/../../w.pt", "https://example.org/w.pt", "C:\\w.pt", "..\\w.pt"]
    )
    def test_names_that_point_outside(self, name, tmp_path):
        """Nothing is unpacked; members under such names are not even looked at."""
        rdf = {"weights": {"pytorch_state_dict": {"source": name}}}
        (tmp_path / "in").mkdir()
        source = package(tmp_path / "in" / "p.zip", rdf, **{name: self.pickled()})
        (tmp_path / "w.pt").write_bytes(self.pickled())
        assert refusal(source, tmp_path / "m").problem == "this package names a file outside itself"
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "p.zip", "w.pt"]

    def test_a_missing_member(self, tmp_path):
        source = package(tmp_path / "p.zip", {"weights": {"pytorch_state_dict": {"source": "w.pt"}}})
        error = refusal(source, tmp_path / "m")
        assert (error.problem, error.expected) == ("this package is not whole", "w.pt")

    def test_weights_that_only_code_can_read(self, tmp_path):
        weights = {"onnx": {"source": "w.onnx"}, "torchscript": {"source": "w.pt"}}
        error = refusal(package(tmp_path / "p.zip", {"weights": weights}), tmp_path / "m")
        assert error.found == "weights: onnx, torchscript"

    @pytest.mark.parametrize(
        "rdf", [[], "text", 5, {"weights": []}, {"attachments": {"a": 1}}, {"attachments": 3}, {"weights": 0}]
    )
    def test_a_description_that_is_not_one(self, rdf, tmp_path):
        assert refusal(package(tmp_path / "p.zip", rdf), tmp_path / "m").exit_code == 2

    def test_no_description(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            archive.writestr("photo.png", b"")
        assert "not a bioimage.io package" in refusal(tmp_path / "p.zip", tmp_path / "m").problem
        (tmp_path / "photos").mkdir()
        assert "not a bioimage.io package" in refusal(tmp_path / "photos", tmp_path / "m").problem

    def test_nothing_there_and_something_there(self, tmp_path, make_model):
        assert refusal(tmp_path / "absent.zip", tmp_path / "m").problem == "there is nothing to import"
        there = make_model(name="there")
        assert refusal(tmp_path / "absent.zip", there).problem == "there is something already"
        assert load_model(str(there)).card.spec.ndim == 3


class TestFineTuning:
    BODY = UNetSpec.build(ndim=2, depth=2, base=2, norm="batch", classes=2)

    def test_the_same_network_takes_everything(self, make_model):
        stored = load_model(str(make_model(self.BODY)))
        network = UNet(self.BODY)
        assert adopt(network, stored) == ()
        after = network.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in stored.network().state_dict().items())

    @settings(max_examples=10)
    @given(spec=network_specs(cost=1e7), seed=SEEDS, classes=st.integers(5, 7))
    def test_another_number_of_classes_leaves_the_head_fresh(self, spec, seed, classes, tmp_path_factory):
        from pipeline import save_random_model

        folder = tmp_path_factory.mktemp("model")
        save_random_model(folder, spec, seed=seed)
        stored = load_model(str(folder))
        network = UNet(replace(spec, classes=classes, dropout=0.0))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        fresh = adopt(network, stored)
        assert set(fresh) == {"head.weight", "head.bias"}
        for name, tensor in network.state_dict().items():
            expected = before[name] if name in fresh else stored.network().state_dict()[name]
            assert torch.equal(tensor, expected), name

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"in_channels": 3}, "in_channels"),
            ({"norm": "none"}, "norm"),
            ({"upsampling": "nearest"}, "upsampling"),
            ({"widths": (2, 4, 9)}, "widths"),
            ({"kernels": ((3, 3), (3, 3), (5, 5))}, "kernels"),
            ({"pools": ((2, 2), (1, 2))}, "pools"),
            ({"widths": (2, 4), "kernels": ((3, 3),) * 2, "pools": ((2, 2),)}, "widths"),
        ],
    )
    def test_another_body_is_refused(self, change, named, make_model):
        stored = load_model(str(make_model(self.BODY)))
        network = UNet(replace(self.BODY, **change))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(InputError, match="cannot be fine-tuned") as refused:
            adopt(network, stored)
        assert refused.value.where == f"{stored.url}, {named}"
        assert refused.value.expected == str(change[named])
        assert refused.value.found == str(getattr(self.BODY, named))
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class TestCommands:
    @pytest.fixture
    def run(self, monkeypatch, capsys):
        def call(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["unet-flows", *map(str, arguments)])
            code = cli.run()
            return code, *capsys.readouterr()

        return call

    def test_there_and_back(self, run, make_model, tmp_path):
        model, zipped = make_model(SPEC), tmp_path / "package.zip"
        options = ("--format", "bioimageio", "--to", zipped, "--author", "A. B.", "--json")
        code, out, err = run("export", model, *options)
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert document["bytes"] == zipped.stat().st_size
        assert document["validation"]["status"] == "valid-format"
        assert document["halo"] == dict(zip("yx", SPEC.context[0]))
        assert document["output_smaller_by"] == {"y": 0, "x": 0}
        code, out, err = run("import", zipped, "--to", tmp_path / "again", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["spec"]["widths"] == list(SPEC.widths)
        assert load_model(str(tmp_path / "again")).digest == load_model(str(model)).digest

    def test_tables_for_people(self, run, make_model, tmp_path):
        code, out, err = run("export", make_model(SPEC), "--format", "onnx", "--to", tmp_path / "m.onnx")
        assert (code, err) == (0, "")
        smallest = SPEC.read_shape(SPEC.stride)
        assert f"y {smallest[0]} + k·2, x {smallest[1]} + k·2" in out
        assert "y 16, x 16" in out
        source = write(tmp_path / "w.pt", random_network(SPEC, 0).state_dict())
        code, out, err = run("import", source, "--to", tmp_path / "m")
        assert (code, err) == (0, "")
        assert 'target: "semantic"' in out

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--format", "tflite", "--to", "new"], "--format is not known"),
            (["--format", "onnx", "--to", "new", "--author", "A"], "no place for this"),
            (["--format", "onnx", "--to", "new", "--image", "volume.zarr"], "no place for this"),
            (["--format", "onnx", "--to", "model"], "something already"),
            (["--format", "bioimageio", "--to", "new", "--name", "a/b/c/d"], "--name"),
        ],
    )
    def test_exports_that_are_refused(self, arguments, says, run, make_model, tmp_path, monkeypatch):
        make_model()
        monkeypatch.chdir(tmp_path)
        code, out, err = run("export", "model", *arguments)
        assert (code, out) == (2, "")
        assert says in err
        assert "Traceback" not in err
        assert not (tmp_path / "new").exists()
