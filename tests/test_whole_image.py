"""Depth, transparency, long texts, huge JPEGs, home folders, and the whole image.

The folder for the command line has wide images whose left end tells the class.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer_course import load_result
from transfer_course.engine.errors import BadValue, NotFound
from transfer_course.engine.files import (
    Unreadable,
    asset,
    home_path,
    image_and_sum,
    noted_image,
    read_image,
    resize_square,
)
from transfer_course.engine.runs import read_run
from transfer_course.practice.extract_folder import extract_folder
from transfer_course.practice.own_folder import tune_folder
from transfer_course.practice.predicting import predict_files
from transfer_course.practice.reading import Reading, completed
from transfer_course.vision import images as vision_images
from transfer_course.vision.data import image_folder
from transfer_course.vision.images import ImageDataset, as_images

BOTH = ("torch", "keras")
FITS = ("crop", "pad", "squash")


def encoded(image, form="PNG", **how):
    """The bytes of a file that holds the image."""
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def noise(height, width, seed=0, top=256):
    return np.random.default_rng(seed).integers(0, top, (height, width, 3), np.uint8)


# --- depth ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_one_bright_pixel_does_not_darken_the_others(form):
    dim = np.random.default_rng(0).integers(0, 4095, (9, 9)).astype(np.uint16)
    hot = dim.copy()
    hot[0, 0] = 65535
    first, second = (read_image(encoded(Image.fromarray(v), form)) for v in (dim, hot))
    assert (first[1:] == second[1:]).all()
    assert np.abs(first[..., 0] - dim / 257).max() <= 0.51


def test_exposures_keep_their_ratio():
    scene = np.random.default_rng(1).random((20, 20))
    means = []
    for top in (2000, 32000):
        values = (scene * top).astype(np.uint16)
        means.append(read_image(encoded(Image.fromarray(values))).mean())
    assert 14 < means[1] / means[0] < 18


def packed_tiff(values):
    """A TIFF that declares twelve bits, two values in three bytes."""
    height, width = values.shape
    body = b""
    for a, b in values.reshape(-1, 2).tolist():
        body += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 277: 1, 278: height}
    tags |= {273: 8 + 2 + 9 * 12 + 4, 279: len(body)}
    entries = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4) + body


def test_twelve_bits_that_a_tiff_declares_reach_white():
    values = np.array([[0, 1000, 2000, 4095]])
    read = read_image(packed_tiff(values))[..., 0]
    assert np.abs(read - values / 4095 * 255).max() <= 0.51


# --- transparency ---------------------------------------------------------------------


def icon(colour, seed=0, size=40):
    """A square of this colour on a transparent ground."""
    at = np.random.default_rng(seed).integers(5, 20)
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[at : at + 12, at : at + 12, 3] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_white_on_transparency_is_put_on_black_and_nothing_else_is(form):
    lossless = {"lossless": True, "exact": True} if form == "WEBP" else {}
    white = noted_image(encoded(icon((255, 250, 248)), form, **lossless))
    assert white.ground == "black" and white.pixels.min() == 0
    assert white.pixels.max() == 255
    others = [icon((0, 0, 0)), icon((255, 220, 60)), Image.new("RGBA", (9, 9))]
    others.append(Image.new("RGBA", (9, 9), "white"))
    for other in others:
        read = noted_image(encoded(other, form, **lossless))
        assert read.ground == "white" and read.pixels.max() == 255
    # A Pillow image in a notebook is treated as its file is.
    assert (as_images(icon((255, 250, 248)))[0] == white.pixels).all()


def test_the_folder_says_what_is_odd(tmp_path):
    for k, colour in enumerate([(255, 255, 255), (20, 90, 200)]):
        (tmp_path / f"c{k}").mkdir()
        for i in range(3):
            icon(colour, i).save(tmp_path / f"c{k}/{i}.png")
    Image.fromarray(np.full((30, 60), 3000, np.uint16)).save(tmp_path / "c1/empty.png")
    dark = np.random.default_rng(0).integers(0, 4096, (30, 60)).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "c1/twelve.png")
    said = image_folder(tmp_path, 32, progress=False).warnings
    assert len(said) == 4, said
    assert "pixels of 2 of the 8 images, 50 % of them" in said[0]
    assert "3 images, such as c0/0.png, are white on transparency" in said[1]
    assert "empty.png is blank" in said[2] and "twelve.png is nearly black" in said[3]
    said = image_folder(tmp_path, 32, fit="pad", progress=False).warnings
    assert not any("are cropped" in text for text in said)


@pytest.mark.parametrize("name", ["noto", "twemoji", "openmoji", "photo"])
def test_no_bundled_image_changes_its_ground(name):
    with zipfile.ZipFile(asset(f"five_styles/{name}.zip")) as archive:
        files = [n for n in archive.namelist() if not n.endswith((".csv", "/", ".txt"))]
        for file in files[::7]:
            assert noted_image(archive.read(file)).ground == "white", file


# --- long texts, huge photographs -----------------------------------------------------


def with_chunk(data, kind, body):
    """The PNG with one more chunk behind its header."""
    check = struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + struct.pack(">I", len(body)) + kind + body + check + data[33:]


@pytest.mark.parametrize(
    ("kind", "before", "pack"),
    [
        (b"iCCP", b"printer\0\0", True),
        (b"zTXt", b"workflow\0\0", True),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", True),
        (b"iTXt", b"note\0\0\0\0\0", False),
        (b"tEXt", b"note\0", False),
    ],
)
def test_a_png_with_a_long_text_is_read(kind, before, pack):
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = noise(6, 9)
    plain = encoded(Image.fromarray(pixels), exif=turned)
    for n in (1000, 3_000_000, 70_000_000 if pack else 5_000_000):
        text = b"history " * (n // 8)
        data = with_chunk(plain, kind, before + (zlib.compress(text) if pack else text))
        assert (read_image(data) == np.rot90(pixels, -1)).all()
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read_image(data[: len(data) - len(plain) + 60])


def test_a_jpeg_of_up_to_twice_the_limit_is_read_at_half_its_size():
    image = Image.fromarray(noise(6, 8)).resize((640, 480), Image.Resampling.BICUBIC)
    data = encoded(image, "JPEG", quality=95)
    whole, half = read_image(data), read_image(data, max_pixels=200_000)
    assert half.shape == (240, 320, 3)
    small = np.asarray(Image.fromarray(whole).reduce(2)).astype(int)
    assert np.abs(half - small).mean() < 3
    assert read_image(data, 32, max_pixels=200_000, draft=True).shape == (32, 32, 3)
    assert read_image(data, 400, max_pixels=200_000, draft=True).shape == (400, 400, 3)
    for wrong, most in ((data, 150_000), (encoded(image), 200_000)):
        with pytest.raises(Unreadable, match="640 × 480.: make it smaller"):
            read_image(wrong, max_pixels=most)


# --- home folders ---------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    border_folder(tmp_path / "home/photos", 5)
    assert len(image_folder("~/photos", 16, progress=False)) == 10
    file = "~/photos/blue/0.png"
    assert as_images([file], 16).images.shape == (1, 16, 16, 3)
    assert read_image(file, 16).shape == (16, 16, 3)
    tune_folder("~/photos", "~/run", strategy="probe", size=32, progress=False)
    info, model = read_run("~/run")
    assert model == tmp_path / "home/run/model.safetensors" and info["size"] == 32
    assert [row["path"] for row in predict_files("~/run", [file])] == [
        str(tmp_path / "home/photos/blue/0.png")
    ]
    extract_folder(Path("~/photos"), "~/features", size=32, progress=False)
    assert (tmp_path / "home/features/extract.json").exists()
    assert not (tmp_path / "~").exists()
    for ask in (image_folder, read_run, read_image):
        with pytest.raises(NotFound, match="there is no user 'nobody-here'"):
            ask("~nobody-here/photos")
    (tmp_path / "~odd").mkdir()
    assert home_path("~odd") == "~odd" and home_path("~/a") == f"{Path.home()}/a"


# --- the whole image ------------------------------------------------------------------


def border_image(kind, seed):
    """An image four times as wide as high; its left end has the class's colour."""
    image = 60 + noise(4, 16, [kind, seed], 120).repeat(8, 0).repeat(8, 1)
    image[:, :24] = noise(32, 24, [kind, seed, 1], 30)
    image[:, :24, (2, 0)[kind]] += 200
    return Image.fromarray(image)


def border_folder(root, n=14):
    """The classes `blue` and `red`."""
    for kind, name in enumerate(("blue", "red")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            border_image(kind, i).save(root / name / f"{i}.png")
    return root


def test_pad_keeps_all_and_squash_stretches():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, :10], image[:, 10:] = (200, 0, 0), (0, 0, 100)
    crop, pad, squash = (
        resize_square(image, 20, fit) for fit in ("crop", "pad", "squash")
    )
    assert not (crop[..., 0] > 100).any()
    assert (pad[8:12, :4, 0] > 150).all() and (squash[:, :4, 0] > 150).all()
    # The border has the mean colour of the edges: a quarter red, the rest blue.
    assert np.abs(pad[0, 0].astype(int) - (50, 0, 75)).max() <= 5
    assert (pad[0] == pad[0, 0]).all() and (pad[-1] == pad[0, 0]).all()
    assert (
        pad == resize_square(image.transpose(1, 0, 2), 20, "pad").transpose(1, 0, 2)
    ).all()
    square = noise(20, 20)
    for fit in FITS:
        assert (resize_square(square, 20, fit) == square).all()
        assert (resize_square(noise(1, 500), 16, fit).shape) == (16, 16, 3)
    with pytest.raises(BadValue, match="'crop' .*Did you mean 'squash'"):
        resize_square(square, 10, "sqash")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The folder whose clue lies at the border."""
    return border_folder(tmp_path_factory.mktemp("wide") / "photos")


def test_a_data_set_reads_with_its_fit_and_old_digests_stay(wide, monkeypatch):
    file_sum = image_and_sum(wide / "blue/0.png", 32)[1]
    digests = {}
    for fit in FITS:
        data = image_folder(wide, 32, fit=fit, progress=False)
        expected = np.stack([read_image(path, 32, fit=fit) for path in data.paths])
        lazy = ImageDataset(paths=data.paths, size=32, fit=fit)
        with monkeypatch.context() as patch:
            patch.setattr(vision_images, "KEEP_BYTES", 0)
            on_disk = image_folder(wide, 32, fit=fit, progress=False)
        for one in (data, lazy, on_disk, lazy.subset([1, 0]).subset([1, 0])):
            assert (one.images == expected[: len(one)]).all() and one.fit == fit
            assert one.digests() == data.digests()[: len(one)]
        both = lazy.subset([0]).concat(lazy.subset([1]))
        assert both.fit == fit and (both.images == expected[:2]).all()
        digests[fit] = data.digests()[0]
    assert len(set(digests.values())) == 3
    assert digests["crop"] == hashlib.sha256(f"{file_sum} 32".encode()).hexdigest()


def command(*args, code=0):
    """The command line as a process."""
    done = subprocess.run(
        [sys.executable, "-m", "transfer_course.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module", params=BOTH)
def padded(request, wide, tmp_path_factory):
    """(framework, a run with `--fit pad`, the finished command)."""
    out = tmp_path_factory.mktemp("padded") / "run"
    settings = ("--framework", request.param, "--strategy", "probe", "--size", 64)
    given = ("--fit", "pad", "--out", out, "--json")
    return request.param, out, command("fine-tune", wide, *settings, *given)


def test_a_clue_at_the_border_is_kept_by_pad_and_squash(padded, wide, tmp_path):
    framework, out, done = padded
    assert json.loads(done.stdout)["accuracy"] == 1 and "are cropped" not in done.stderr
    assert json.loads((out / "run.json").read_text())["fit"] == "pad"
    report = (out / "report.html").read_text()
    assert "whole image with a border" in report and "fit=&#x27;pad&#x27;" in report
    accuracy, said = {}, []
    how = dict(framework=framework, strategy="probe", size=64, progress=False)
    for fit in ("crop", "squash"):
        run = tune_folder(wide, tmp_path / fit, fit=fit, say=said.append, **how)
        accuracy[fit] = run["accuracy"]
    assert accuracy["squash"] == 1 and accuracy["crop"] < 0.9
    told = [text for text in said if "are cropped" in text]
    assert len(told) == 1 and "28 of the 28 images, 75 %" in told[0]
    assert "--fit pad" in told[0]
    with pytest.raises(BadValue, match="fit pad, not crop"):
        tune_folder(wide, out, resume=True, fit="crop", **how)


def test_most_long_images_are_padded_by_default(wide, tmp_path):
    assert completed(wide, Reading(fit=None)).fit == "pad"
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i, width in enumerate((30, 40, 55, 200)):
            Image.fromarray(noise(30, width, i)).save(tmp_path / kind / f"{i}.png")
    assert completed(tmp_path, Reading(fit=None)).fit == "crop"


def test_predict_reads_as_training_did(padded, tmp_path):
    names = []
    for kind, name in enumerate(("blue", "red")):
        for i in range(4):
            border_image(kind, 100 + i).save(tmp_path / f"{name}{i}.png")
            names.append(name)
    rows = list(predict_files(padded[1], [tmp_path]))
    assert [row["class"] for row in rows] == names
    result, files = load_result(padded[1]), [row["path"] for row in rows]
    for given in (files, [Image.open(file) for file in files]):
        sure = result.predict(given).max(1)
        assert np.allclose(sure, [row["probability"] for row in rows], atol=1e-4)


def test_extract_has_the_same_option(wide, tmp_path):
    found = {}
    for fit in ("crop", "pad"):
        out = tmp_path / fit
        extract_folder(wide, out, size=64, fit=fit, progress=False)
        found[fit] = np.load(out / "features.npy")
    assert np.abs(found["crop"] - found["pad"]).max() > 0.1
    # An extraction of an earlier version says nothing of it, and was cropped.
    info = json.loads((tmp_path / "crop/extract.json").read_text())
    assert info.pop("fit") == "crop"
    (tmp_path / "crop/extract.json").write_text(json.dumps(info))
    again = extract_folder(
        wide, tmp_path / "crop", size=64, resume=True, progress=False
    )
    assert again["n"] == 28
    done = command(
        *("extract", wide, "--size", 64, "--fit", "pad", "--resume"),
        *("--out", tmp_path / "crop"),
        code=2,
    )
    assert "was begun with fit 'crop', and now it is 'pad'" in done.stderr
    shutil.rmtree(tmp_path / "crop")
