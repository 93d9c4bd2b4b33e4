"""The README of a run: its lines run where this package can't be imported."""

import subprocess
import sys

import numpy as np
import pytest
from test_export import HUES, photos, program, runs, said  # noqa: F401

from transfer_course import backbone, load_result
from transfer_course.engine import pixels
from transfer_course.engine.files import read_image
from transfer_course.engine.frameworks import load_torch
from transfer_course.engine.plain_use import _opened, _torch_body, plain_code

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
    runs,  # noqa: F811
    photos,  # noqa: F811
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
    from PIL import Image, ImageOps

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
