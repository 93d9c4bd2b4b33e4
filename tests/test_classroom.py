"""Pictures that everyone can read, and the doctor that works on a bare machine."""

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from transfer_course.classroom import doctor
from transfer_course.classroom.doctor import Finding, as_dict, as_text, bundled, examine
from transfer_course.classroom.pictures import (
    COLOURS,
    bars,
    grid,
    lightness,
    png,
    readable,
    show,
    style,
)

COMPARED = ["majority", "random_probe", "scratch", "probe", "fine_tune"]
METHODS = [m for m in COLOURS if m not in ("torch", "keras")]

# ---- colours

# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as seen with the three
# kinds of colour blindness.
SEEN = {
    "normal": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def lab(colour, seen):
    s = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.clip(
        np.array(SEEN[seen])
        @ np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4),
        0,
        1,
    )
    t = XYZ @ linear / XYZ.sum(1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_methods_differ_in_grey():
    far = {
        (a, b): abs(lightness(COLOURS[a]) - lightness(COLOURS[b]))
        for a, b in itertools.combinations(COMPARED, 2)
    }
    assert min(far.values()) > 7, far
    assert min(np.diff(sorted(lightness(COLOURS[m]) for m in METHODS))) > 7
    assert abs(lightness(COLOURS["torch"]) - lightness(COLOURS["keras"])) > 30
    # None is lost on white paper.
    assert max(lightness(c) for c in COLOURS.values()) < 80


@pytest.mark.parametrize("seen", SEEN)
def test_methods_differ_for_every_eye(seen):
    for a, b in [*itertools.combinations(METHODS, 2), ("torch", "keras")]:
        assert np.linalg.norm(lab(COLOURS[a], seen) - lab(COLOURS[b], seen)) > 15, (
            a,
            b,
        )


def test_lightness_is_the_cie_one():
    for c in ("#0f2960", "#ffffff", "#010101", "#38b3ee"):
        assert lightness(c) == pytest.approx(lab(c, "normal")[0], abs=0.05)


def test_style():
    assert all(
        len({style(m)["marker"] for m in group}) == len(group)
        for group in (METHODS, ["torch", "keras"])
    )
    with pytest.raises(ValueError, match="probe, head"):
        style("prob")


# ---- pictures


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    out = []
    monkeypatch.setattr(IPython.display, "display", out.append)
    return out


def test_show_carries_its_words(shown):
    fig = Figure()
    fig.subplots().plot([1, 2])
    show(fig.axes[0], alt="a line")
    data, metadata = shown[0]._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": "a line"}} and shown[0].data == png(fig)


@pytest.mark.parametrize("alt", ["", "  ", None, 3])
def test_no_picture_without_words(shown, alt):
    for call in (
        lambda: show(Figure(), alt=alt),
        lambda: grid([np.zeros((2, 2, 3), "uint8")], alt=alt),
    ):
        with pytest.raises(ValueError, match="alt="):
            call()
    assert not shown


def test_show_takes_and_closes_the_current_figure(shown):
    import matplotlib.pyplot as plt

    plt.close("all")
    with pytest.raises(ValueError, match="figure"):
        show(alt="nothing yet")
    plt.plot([1, 2])
    show(alt="a line")
    assert plt.get_fignums() == [] and len(shown) == 1
    with pytest.raises(ValueError, match="figure"):
        show([1, 2], alt="a list")


def test_pyplot_and_the_backend_stay_as_they_are():
    code = """
import sys, numpy as np, matplotlib, IPython.display
IPython.display.display = lambda *a: None
matplotlib.use("svg")                       # the user's choice
before = dict(matplotlib.rcParams)
from transfer_course.classroom.pictures import bars, grid, show
from transfer_course.classroom.doctor import Finding, picture
show(bars([("probe", .5, .4, .6)]), alt="x")
grid(np.zeros((3, 4, 4, 3), "uint8"), alt="x")
show(picture([Finding("Python", True, "3")]), alt="x")
print("matplotlib.pyplot" in sys.modules, dict(matplotlib.rcParams) == before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # Neither imported nor changed.
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "猫头鹰",
        "قط",
        "🦊👩‍👩‍👧",
        "caf\udce9",
        "$x",
        "$a$ $",
        "a\nb",
        "\x00",
        "é",
        "हिन्दी",
        "",
    ],
)
def test_names_in_any_script_are_drawn_without_a_warning(shown, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png(bars([(name, 0.5, 0.4, 0.6)], title=name))
        grid([np.zeros((2, 2), "uint8")], [name], alt="x")
        png(doctor.picture([Finding(name, True, name)]))
    assert readable("Émile 1") == "Émile 1"


def test_grid_takes_any_images(shown):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, s, "uint8")
        for s in [(8, 8, 3), (3, 20, 3), (20, 3, 3), (5, 5), (6, 6, 4), (1, 1, 3)]
    ]
    grid(images, range(6), columns=4, alt="six")
    grid(np.stack([images[0]] * 17), alt="seventeen")
    assert len(shown) == 2
    with pytest.raises(ValueError, match="no images"):
        grid([], alt="x")
    with pytest.raises(ValueError, match="6 images and 2 titles"):
        grid(images, ["a", "b"], alt="x")


def test_grid_shows_the_pixels(shown):
    """A red, a green and a blue square appear in reading order."""
    import io

    from PIL import Image

    squares = np.zeros((3, 8, 8, 3), "uint8")
    for i in range(3):
        squares[i, :, :, i] = 255
    grid(squares, columns=2, alt="red, green, blue")
    seen = np.asarray(Image.open(io.BytesIO(shown[0].data)).convert("RGB")).astype(int)
    where = [
        np.argwhere((seen == np.eye(3)[i] * 255).all(-1)).mean(0) for i in range(3)
    ]
    (ry, rx), (gy, gx), (by, bx) = where
    assert abs(ry - gy) < 2 and rx < gx - 20 and abs(rx - bx) < 2 and by > ry + 20


def test_bars():
    rows = [
        ("majority", 0.1),
        ("probe · torch", 0.6, 0.5, 0.7),
        ("fine_tune", None, None, None),
        ("own", np.nan),
    ]
    ax = bars(rows, title="t").axes[0]
    from matplotlib.colors import to_hex

    assert [to_hex(p.get_facecolor()) for p in ax.patches][:3] == [
        COLOURS[m] for m in ("majority", "probe", "fine_tune")
    ]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.10", "0.60  (0.50 to 0.70)", "not run", "not run"]
    assert [t.get_text() for t in ax.get_yticklabels()][
        0
    ] == "majority" and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlim()[0] == 0  # a bar begins at zero
    assert bars([("a", -0.3, -0.4, -0.1)]).axes[0].get_xlim()[0] < -0.4
    png(bars([("a", None)]))
    with pytest.raises(ValueError, match="no rows"):
        bars([])


# ---- doctor


def test_doctor_is_quick_light_and_calm():
    code = """
import sys, time; start = time.perf_counter()
from transfer_course.classroom.doctor import as_text, examine
text = as_text(examine())
heavy = ("torch", "tensorflow", "keras", "matplotlib")
print(time.perf_counter() - start, [m for m in heavy if m in sys.modules], text)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    seconds, modules, text = done.stdout.split(" ", 2)
    assert float(seconds) < 3 and modules == "[]" and "Python" in text


def well_formed(findings):
    assert all(isinstance(f, Finding) and f.ok in (True, False, None) for f in findings)
    assert all(f.name and f.value and "\n" not in f.value for f in findings)
    assert all(f.advice for f in findings if f.ok is False), (
        "a finding that fails says what to do"
    )
    assert json.loads(json.dumps(as_dict(findings)))["ok"] == all(
        f.ok is not False for f in findings
    )
    return {f.name: f for f in findings}


def test_findings_are_well_formed():
    found = well_formed(examine())
    names = {
        "Python",
        "core packages",
        "framework",
        "processor cores",
        "memory",
        "GPU",
        "disk",
        "cache",
        "bundled files",
    }
    assert names <= found.keys() and found["Python"].ok and found["core packages"].ok
    assert "Jupyter kernel" in found and str(Path.home()) not in as_text(
        list(found.values())
    )


def test_core_only(monkeypatch):
    core = {
        "numpy",
        "scipy",
        "pillow",
        "scikit-learn",
        "matplotlib",
        "safetensors",
        "typer",
        "tqdm",
        "filelock",
    }
    core |= {"platformdirs", "lazy_loader", "pooch", "psutil", "pyyaml"}
    real = importlib.metadata.version

    def version(name):
        if name in core:
            return real(name)
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = well_formed(examine())
    assert found["core packages"].ok and found["framework"].ok is False
    assert "transfer_course[torch]" in found["framework"].advice
    assert found["extra keras"] == Finding(
        "extra keras",
        None,
        "not installed",
        "To have it: pip install -U 'transfer_course[keras]'",
    )


def test_old_and_missing_packages(monkeypatch):
    have = {"numpy": "1.26.4", "scipy": None, "pillow": "11.0"}
    monkeypatch.setattr(doctor, "_version", have.get)
    f = doctor._group("", {"numpy": ">=2.0", "scipy": ">=1.13", "pillow": ">=10.3"})
    assert (
        f.ok is False
        and f.value == "numpy 1.26.4 (needs >=2.0), pillow 11.0; missing: scipy"
    )


@pytest.mark.parametrize(
    "version, wanted, ok",
    [
        ("2.10", ">=2.9", True),
        ("2.9", ">=2.10", False),
        ("2.0.0+cu121", "==2.0.0", True),
        ("3.0", ">=2,<3", False),
    ]
    + [
        ("2.5.1", "~=2.4", True),
        ("3.0", "~=2.4", False),
        ("1.0", "", True),
        ("8.3.2", "!=8.3.*", False),
    ],
)
def test_versions_are_compared_as_numbers(version, wanted, ok):
    assert doctor._meets(version, wanted) is ok


def test_tensorflow_before_triton(monkeypatch):
    monkeypatch.setattr(
        doctor,
        "_version",
        {"torch": "2.15", "keras": "3.15", "tensorflow": "2.21", "triton": "3"}.get,
    )
    assert well_formed(list(doctor._frameworks()))["PyTorch with TensorFlow"].ok
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    late = well_formed(list(doctor._frameworks()))["PyTorch with TensorFlow"]
    assert late.ok is False and "Restart the kernel" in late.advice


def test_backend_that_is_not_there(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(doctor, "_version", {"keras": "3.15", "tensorflow": "2.21"}.get)
    assert "jax" in well_formed(list(doctor._frameworks()))["Keras' backend"].value


def test_torch_and_torchvision_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(
        doctor, "_version", {"torch": "2.13.0", "torchvision": "0.29"}.get
    )
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["numpy", "torchfoo>1", "torch (>=2.14.0)"],
    )
    (f,) = doctor._pair()
    assert f.ok is False and "2.14" in f.advice


def test_bundled_files(tmp_path):
    assert bundled(tmp_path).ok is False  # no list
    (tmp_path / "checksums.json").write_text("{")
    assert "list" in bundled(tmp_path).value
    import hashlib

    sums = {"sub/a.zip": hashlib.sha256(b"a").hexdigest(), "b.zip": "0" * 64}
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.zip").write_bytes(b"a")
    assert bundled(tmp_path).value == "missing: b.zip"
    (tmp_path / "b.zip").write_bytes(b"b")
    f = bundled(tmp_path)
    assert f.value == "damaged: b.zip" and "Reinstall" in f.advice
    (tmp_path / "checksums.json").write_text(
        json.dumps({"sub/a.zip": sums["sub/a.zip"]})
    )
    assert bundled(tmp_path).ok


def test_real_bundled_files():
    f = bundled()
    assert f.ok and "undamaged" in f.value


@pytest.mark.parametrize(
    "env",
    [{}, {"XDG_CACHE_HOME": "/somewhere"}, {"TRANSFER_COURSE_CACHE": "~/features"}],
)
def test_cache_folder_is_the_engines(monkeypatch, env):
    from transfer_course.engine.cache import cache_dir

    for name in ("XDG_CACHE_HOME", "TRANSFER_COURSE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert doctor.cache_folder() == cache_dir()


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(tmp_path / "file" / "cache"))
    assert well_formed(list(doctor._cache()))["cache"].ok is False
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(tmp_path / "new" / "cache"))
    assert (
        well_formed(list(doctor._cache()))["cache"].ok
        and not (tmp_path / "new").exists()
    )


def test_a_small_machine(monkeypatch):
    # kB of memory, B of the limit.
    monkeypatch.setattr(doctor, "_read_number", lambda path, pattern="": 2 * 2**20)
    assert well_formed(list(doctor._memory()))["memory"].ok is False


def test_a_driver_that_hangs(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    start = time.perf_counter()
    (f,) = doctor._gpu()
    assert (
        f.ok is None and "did not answer" in f.value and time.perf_counter() - start < 6
    )


def test_a_gpu(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho Some Card\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(doctor, "_version", {"torch": "2.15.0"}.get)
    assert list(doctor._gpu()) == [Finding("GPU", True, "Some Card")]
    monkeypatch.setattr(doctor, "_version", {"torch": "2.15.0+cpu"}.get)
    (f,) = doctor._gpu()
    assert f.ok is None and "built for the CPU" in f.advice


def test_nothing_makes_it_crash(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("on fire")

    for name in (
        "_python",
        "_packages",
        "_frameworks",
        "_pair",
        "_cores",
        "_memory",
        "_gpu",
        "_cache",
        "_bundled",
        "_kernel",
    ):
        monkeypatch.setattr(
            doctor, name, types.FunctionType(broken.__code__, globals(), name)
        )
    found = examine()
    assert len(found) == 10 and all(
        f.ok is None and "on fire" in f.value for f in found
    )
    assert "on fire" in as_text(found)


def test_as_text():
    text = as_text(
        [
            Finding("a", True, "fine", "not shown"),
            Finding("bb", False, "bad", "do this"),
            Finding("c", None, "–"),
        ]
    )
    assert text.split("\n") == [
        "ok  a   fine",
        "!!  bb  bad",
        "        > do this",
        "--  c   –",
        "",
        "To mend (!!): 1.",
    ]
    assert as_text([]).strip() == "Everything that is needed is here."
