"""What a run gives without this package.

An exported file in its own runtime, and the lines of a run's README in its framework.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image, ImageOps

from transfer_course import backbone, cli, load_result
from transfer_course.engine import pixels
from transfer_course.engine.errors import BadValue, MissingExtra, NotFound
from transfer_course.engine.files import read_image
from transfer_course.engine.frameworks import load_torch
from transfer_course.engine.plain_use import _opened, _torch_body, plain_code
from transfer_course.engine.runtimes import open_exported, read_notes
from transfer_course.practice.export_run import export_run
from transfer_course.trainer import converting, export_model
from transfer_course.trainer.export_model import Disagrees, check_images, export_result

HUES = {"apple": (220, 60, 50), "ball": (50, 90, 220), "cup of tea": (60, 180, 70)}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert"}


def photographs(folder, each=16, seed=0):
    """One folder per class with pictures of its colour, wider than high."""
    rng = np.random.default_rng(seed)
    for name, hue in HUES.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(60, 180, (72, 96, 3))
            pixels[16:56, 28:68] = np.array(hue) + rng.integers(-25, 26, 3)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{i}.jpg", quality=90)
    return folder


def command(*arguments, code=0):
    """The lines of JSON that the command prints; it has to end with this code."""
    done = subprocess.run(
        [sys.executable, "-m", "transfer_course.cli", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("export") / "photos")


@pytest.fixture(scope="module")
def runs(photos):
    """A run in each framework, made by the command."""
    for framework in ("torch", "keras"):
        how = ["--framework", framework, "--strategy", "probe", "--size", 64]
        command("fine-tune", photos, *how, "--out", photos.parent / framework)
    return {name: photos.parent / name for name in ("torch", "keras")}


def linked(folder, *names):
    """A site folder with these distributions and what they require, and no other."""
    folder.mkdir()
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        found = importlib.metadata.distribution(name)
        for text in found.requires or ():
            required = Requirement(text)
            if not required.marker or required.marker.evaluate({"extra": ""}):
                wanted.append(required.name)
        for top in {Path(file.parts[0]) for file in found.files if file.parts}:
            place = Path(found.locate_file(top))
            if place.exists() and top.name not in ("..", "__pycache__"):
                link = folder / top.name
                if not link.exists():
                    link.symlink_to(place)
    return folder


def alone(code, site, folder):
    """What a program prints in a Python that finds the packages in `site` only."""
    start = f"import sys; sys.path.append({str(site)!r})\n"
    for name in ("torch", "keras", "tensorflow", "transfer_course"):
        start += f"import importlib.util as u; assert u.find_spec({name!r}) is None\n"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", start + code],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def program(readme):
    """The program in a README."""
    return re.search(r"```python\n(.*?)```", readme.read_text("utf-8"), re.S)[1]


def said(text):
    """(class, probability) that a program has printed."""
    name, _, value = text.strip().rpartition(" ")
    return name, float(value)


@pytest.mark.parametrize("framework, to", [("torch", "onnx"), ("keras", "tflite")])
def test_the_command_writes_a_file_that_its_runtime_runs_alone(
    runs, photos, tmp_path, framework, to
):
    out = tmp_path / f"model{SUFFIXES[to]}"
    (made,) = command("export", runs[framework], "--to", to, "--out", out)
    assert made["format"] == to and made["path"] == str(out)
    assert made["images"] == 100 and made["difference"] <= 1e-4
    held_out = json.loads((runs[framework] / "run.json").read_text())["n_valid"]
    assert f"{held_out} held-out images of" in made["compared_on"]
    assert "bundled photographs" in made["compared_on"]
    shutil.copy(photos / "ball" / "3.jpg", tmp_path / "photo.jpg")
    site = linked(tmp_path / "site", RUNTIMES[to], "numpy", "pillow")
    readme = tmp_path / f"{out.name}.md"
    name, probability = said(alone(program(readme), site, tmp_path))
    expected = load_result(runs[framework]).predict(str(tmp_path / "photo.jpg"))[0]
    assert name == list(HUES)[expected.argmax()]
    assert abs(probability - expected.max()) <= 1e-4
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_int8_states_its_loss_on_the_held_out_images(runs, tmp_path):
    # a name that was once overwritten while it was read, which killed the process
    out, run = tmp_path / "int8.xml", runs["torch"]
    (made,) = command("export", run, "--to", "openvino", "--int8", "--out", out)
    loss, difference = made["int8"], made["int8"]["difference"]
    info = json.loads((run / "run.json").read_text())
    assert loss["images"] == info["n_valid"]
    assert loss["accuracy"] == pytest.approx(info["metrics"]["accuracy"])
    gap = loss["accuracy_int8"] - loss["accuracy"]
    assert difference["mean"] == pytest.approx(gap)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert read_notes(out)["precision"] == "int8"
    # A quarter of 13.5 MB; the values of the layers are int8 indeed.
    assert made["bytes"] < 5e6
    images = check_images(64, 20)
    off = np.abs(open_exported(out)(images) - load_result(run).predict(images)).max()
    assert off > 1e-4


def test_int8_needs_the_images_of_the_run_and_openvino(runs, tmp_path):
    others = photographs(tmp_path / "photos", each=2, seed=1)
    with pytest.raises(BadValue, match="--images FOLDER"):
        out = tmp_path / "a.xml"
        export_run(runs["torch"], "openvino", out, int8=True, images=others)
    with pytest.raises(BadValue, match="--int8 is there for --to openvino"):
        export_run(runs["torch"], "onnx", tmp_path / "a.onnx", int8=True)
    with pytest.raises(NotFound, match="No such folder"):
        export_run(runs["torch"], "onnx", images=tmp_path / "none")


@pytest.fixture(scope="module")
def small():
    """A network with random weights, as if it had been trained: PyTorch, 32 px."""
    torch = load_torch()
    from transfer_course.trainer.recipe import Recipe
    from transfer_course.trainer.torch_state import TorchResult
    from transfer_course.vision.finetune_torch import Network

    torch.manual_seed(0)
    net = backbone("small_cnn", "torch", weights=None)
    model = Network(net.model, torch.nn.Linear(net.feature_dim, 3)).eval()
    return TorchResult(net, model, list(HUES), Recipe(), info={"size": 32})


@pytest.fixture
def keras_small(small):
    """The same network in Keras."""
    from transfer_course.trainer.keras_state import KerasResult

    twin = converting.as_keras(small)
    return KerasResult(
        twin.backbone, twin.model, small.classes, small.recipe, info=dict(small.info)
    )


def test_a_result_exports_and_says_what_it_is(small, tmp_path):
    made = small.export(tmp_path / "small.tflite")
    assert made["difference"] <= 1e-5 and made["images"] == 100
    notes = read_notes(made["path"])
    assert json.loads(notes["classes"]) == list(HUES)
    assert (notes["size"], notes["fit"], notes["target"]) == ("32", "crop", "classes")
    assert (notes["backbone"], notes["licence"]) == ("small_cnn", "Apache-2.0")
    assert notes["transfer_course"] and notes["created"].startswith("20")


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_keras_has_a_way_to_every_runtime(keras_small, tmp_path, to):
    path = tmp_path / f"small{SUFFIXES[to]}"
    made = keras_small.export(path)
    assert made["difference"] <= 1e-5
    # OpenVINO's packages report each use to their makers, if they are let.
    assert sys.modules.get("openvino_telemetry") is None
    Image.fromarray(check_images(32, 1)[0]).save(tmp_path / "photo.jpg", format="png")
    site = linked(tmp_path / "site", RUNTIMES[to], "numpy", "pillow")
    readme = tmp_path / f"{path.name}.md"
    name, probability = said(alone(program(readme), site, tmp_path))
    expected = keras_small.predict(check_images(32, 1))[0]
    assert name == list(HUES)[expected.argmax()]
    assert abs(probability - expected.max()) <= 1e-4


@pytest.mark.parametrize("target", ["labels", "numbers"])
@pytest.mark.parametrize("to", ["openvino", "tflite"])
def test_other_targets_have_their_own_last_function(
    small, keras_small, tmp_path, target, to, monkeypatch
):
    result = small if to == "openvino" else keras_small
    about = {"target": target, "mean": [1.0, 20.0, 3.0], "std": [2.0, 5.0, 0.1]}
    monkeypatch.setattr(result, "info", result.info | about)
    images = check_images(32, 5)
    logits = result.logits(images).astype(float)
    expected = {
        "labels": 1 / (1 + np.exp(-logits)),
        "numbers": logits * np.array(about["std"]) + np.array(about["mean"]),
    }[target]
    path = tmp_path / f"model{SUFFIXES[to]}"
    converting.convert(result, path, to, 32)
    assert np.allclose(open_exported(path)(images), expected, atol=1e-4)


def test_a_file_that_disagrees_is_not_kept(runs, tmp_path, monkeypatch, capsys):
    def wrong(result, path, to, size):
        """As a converter that gets the preprocessing wrong."""
        mean = result.backbone.mean
        result.backbone.mean = (100.0,) * 3
        converting.convert(result, path, to, size)
        result.backbone.mean = mean

    monkeypatch.setattr(export_model, "convert", wrong)
    how = ["export", str(runs["torch"]), "--to", "openvino"]
    with pytest.raises(SystemExit) as end:
        cli.main([*how, "--out", str(tmp_path / "model.xml")])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "differs from predict by 0." in told and "nothing was written" in told
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_size_is_noticed(small, tmp_path):
    images = check_images(32)
    path = tmp_path / "fixed.xml"
    with export_model.staged(path) as file:
        converting.convert(small, file, "openvino", 32)
        import openvino as ov

        model = ov.Core().read_model(file)
        model.reshape([100, 32, 32, 3])
        fixed = file.with_name("other.xml")
        ov.save_model(model, fixed, compress_to_fp16=False)
        with pytest.raises(Exception, match="hape|compatible"):
            export_model.check_agreement(small, fixed, images)
        export_model.describe_file(file, export_model.notes_of(small))
        assert export_model.check_agreement(small, file, images) <= 1e-5


def test_what_exists_is_kept_and_names_have_to_fit(small, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(BadValue, match="a.bin exists already"):
        small.export(tmp_path / "a.xml")
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    with pytest.raises(BadValue, match="does not end in .onnx"):
        small.export(tmp_path / "a.xml", to="onnx")
    with pytest.raises(BadValue, match="expected one of .onnx, .xml, .tflite"):
        small.export(tmp_path / "model.pt")
    with pytest.raises(NotFound, match="no folder"):
        small.export(tmp_path / "none" / "a.xml")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_can_not_be_had_is_said(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"transfer_course\[export\]"):
        small.export(tmp_path / "a.xml")
    monkeypatch.setattr(small.backbone, "name", "resnet50")
    with pytest.raises(BadValue, match="--framework keras"):
        small.export(tmp_path / "a.tflite")
    monkeypatch.setattr(small, "info", {})
    with pytest.raises(BadValue, match="how large its images were"):
        small.export(tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_or_shape_do_not_agree(small, tmp_path):
    wanted = np.full((4, 3), 0.3)
    assert export_model.largest_difference(wanted[:, :2], wanted) == np.inf
    assert export_model.largest_difference(wanted * np.nan, wanted) == np.inf
    assert export_model.largest_difference(wanted + 0.01, wanted) == pytest.approx(0.01)
    with pytest.raises(Disagrees):
        export_result(
            small, tmp_path / "a.xml", images=np.zeros((0, 32, 32, 3), "uint8")
        )


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "transfer_course":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_lines_of_the_readme_give_what_predict_gives(
    runs,
    photos,
    framework,
):
    run, readme = runs[framework], runs[framework] / "README.md"
    code = program(readme)
    lines = [line for line in code.splitlines() if line]
    assert len([x for x in lines if not x.startswith(("import", "from"))]) <= 10
    image = photos / "cup of tea" / "5.jpg"
    code = code.replace('"photo.jpg"', repr(str(image)))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], cwd=run, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, probability = said(done.stdout)
    expected = load_result(run).predict(str(image))[0]
    assert name == list(HUES)[expected.argmax()]
    assert abs(probability - expected.max()) <= 1e-4


FITS = getattr(pixels, "FITS", ("crop",))


@pytest.mark.parametrize("shape", [(57, 90), (90, 57), (40, 40), (3, 200)])
@pytest.mark.parametrize("fit", FITS)
def test_the_lines_read_an_image_as_predict_does(tmp_path, fit, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise).save(path, exif=turned, quality=95)
    code = _opened(32, fit).replace('"photo.jpg"', repr(str(path)))
    names = {"Image": Image, "ImageOps": ImageOps, "np": np}
    exec(code, names)
    how = {} if fit == "crop" else {"fit": fit}
    assert np.array_equal(np.array(names["image"]), read_image(path, size=32, **how))


@pytest.mark.parametrize(
    "name",
    ["efficientnet_lite0", "small_cnn", "resnet50", "vgg16", "convnext_tiny"]
    + ["efficientnet_b0", "vit_b_16", "timm:resnet10t"],
)
def test_the_network_of_the_lines_has_the_tensors_of_a_run(name):
    torch = load_torch()
    with torch.device("meta"):
        wanted = backbone(name, "torch", weights=None).model.state_dict()
        names = {"torch": torch}
        exec("\n".join(_torch_body(name)), names)
    found = names["body"].state_dict()
    assert list(found) == list(wanted)
    assert all(found[k].shape == wanted[k].shape for k in wanted)


def test_a_network_of_no_library_and_an_old_run_have_no_lines():
    info = {"framework": "torch", "backbone": {"name": "mine"}, "size": 64}
    assert plain_code(info) is None
    assert plain_code({**info, "size": None}) is None
    assert plain_code({**info, "fit": "other"}) is None
