"""engine.files: what a person's folder really holds, written to disk and read back."""

import errno
import io
import json
import os
import pickle
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nobody import as_nobody
from PIL import Image, ImageFile

from transfer_course.engine import files
from transfer_course.engine.errors import (
    BadValue,
    Damaged,
    NoRoom,
    NotFound,
    UserMistake,
)
from transfer_course.engine.files import (
    Unreadable,
    asset,
    atomic_write,
    list_images,
    printable,
    read_image,
    resize_square,
    sha256_array,
    sha256_file,
)

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
quick = settings(max_examples=60, deadline=None, derandomize=True)


def encoded(im, form, **options):
    """The bytes of a whole image file."""
    im.save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def texture(h=60, w=80, channels=3, seed=0):
    """A picture that neither compresses to nothing nor is pure noise."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:h, :w]
    waves = [(5 * x + 3 * (c + 1) * y) % 256 for c in range(channels)]
    return np.clip(
        np.stack(waves, -1) + rng.integers(-20, 20, (h, w, channels)), 0, 255
    ).astype(np.uint8)


def exif(orientation):
    """An EXIF block that says how the camera was held."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def reason(source, **options):
    """Why `source` is refused."""
    with pytest.raises(Unreadable) as e:
        read_image(source, **options)
    return e.value.reason


# --- every mode -----------------------------------------------------------------------


def on_white(rgb, alpha):
    """Alpha composed on white, in floats."""
    a = alpha[..., None] / 255
    return rgb * a + 255 * (1 - a)


def grey(a):
    return np.repeat(a[..., None], 3, -1)


def plain(a):
    """(file's bytes, expected picture, tolerance) of each mode stored without loss."""
    rgb, alpha, g = a[..., :3], a[..., 3], a[..., 0]
    deep = g.astype(np.uint16) * 256 + a[..., 1]
    full = deep.copy()
    full[0, 0] = 65535
    pal = Image.fromarray(g)
    pal.putpalette([(7 * i + c) % 256 for i in range(256) for c in range(3)])
    table = np.array([[(7 * i + c) % 256 for c in range(3)] for i in range(256)])
    seen = np.where((g == 5)[..., None], 255, table[g])
    grey16 = Image.fromarray(full)
    yield "L", encoded(Image.fromarray(g), "PNG"), grey(g), 0
    yield "1", encoded(Image.fromarray(g > 99), "PNG"), grey(255 * (g > 99)), 0
    yield "RGB png", encoded(Image.fromarray(rgb), "PNG"), rgb, 0
    yield "RGB bmp", encoded(Image.fromarray(rgb), "BMP"), rgb, 0
    yield (
        "RGB tiff",
        encoded(Image.fromarray(rgb), "TIFF", compression="tiff_lzw"),
        rgb,
        0,
    )
    yield "RGB webp", encoded(Image.fromarray(rgb), "WEBP", lossless=True), rgb, 0
    yield "RGBA", encoded(Image.fromarray(a), "PNG"), on_white(rgb, alpha), 1
    yield (
        "RGBA webp",
        encoded(Image.fromarray(a), "WEBP", lossless=True, exact=True),
        on_white(rgb, alpha),
        1,
    )
    la = Image.merge("LA", [Image.fromarray(g), Image.fromarray(alpha)])
    yield "LA", encoded(la, "PNG"), on_white(grey(g), alpha), 1
    yield "P", encoded(pal, "PNG"), table[g], 0
    yield "P transparent", encoded(pal, "PNG", transparency=5), seen, 0
    yield (
        "P many alphas",
        encoded(pal, "PNG", transparency=bytes(range(256))),
        on_white(table[g], g),
        1,
    )
    yield "P gif", encoded(pal, "GIF", transparency=5), seen, 0
    clear = encoded(Image.fromarray(g), "PNG", transparency=int(g[0, 0]))
    yield "L transparent", clear, grey(np.where(g == g[0, 0], 255, g)), 0
    yield "I;16 png", encoded(grey16, "PNG"), grey(full / 257), 0.51
    yield "I;16 tiff", encoded(grey16, "TIFF"), grey(full / 257), 0.51
    twelve = (full // 16).astype(np.uint16)
    yield (
        "12 bits",
        encoded(Image.fromarray(twelve), "PNG"),
        grey(twelve / 257),  # the file declares sixteen
        0.51,
    )
    yield (
        "I",
        encoded(Image.fromarray(full.astype(np.int32)), "TIFF"),
        grey(full / 257),
        0.51,
    )
    unit = (deep / 65535).astype(np.float32)
    unit[0, 0] = 1
    yield "F 0..1", encoded(Image.fromarray(unit), "TIFF"), grey(unit * 255), 0.51
    wide = unit * 3e5 - 1e5
    wide[-1, -1] = -1e5
    own = (wide - wide.min()) / max(float(wide.max() - wide.min()), 1e-9) * 255
    yield "F own range", encoded(Image.fromarray(wide), "TIFF"), grey(own), 0.51
    cmyk = Image.merge("CMYK", [Image.fromarray(a[..., i]) for i in range(4)])
    ink = np.clip(255 - a[..., :3].astype(int) - a[..., 3:].astype(int), 0, 255)
    multiplied = (
        (255 - a[..., :3].astype(float)) * (255 - a[..., 3:].astype(float)) / 255
    )
    # Pillow has had two formulas for ink; both are right where one of the two inks is
    # zero
    yield "CMYK", encoded(cmyk, "TIFF"), (ink, multiplied), 2
    yield (
        "YCbCr",
        encoded(Image.fromarray(rgb).convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        rgb,
        3,
    )


@quick
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_every_lossless_mode_and_size_reads_as_what_was_saved(h, w, seed):
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 4), dtype=np.uint8)
    for mode, data, want, tolerance in plain(a):
        got = read_image(data)
        assert (
            got.dtype == np.uint8 and got.shape == (h, w, 3) and got.flags.writeable
        ), mode
        wants = want if isinstance(want, tuple) else (want,)
        assert (
            min(np.abs(got - np.asarray(x, float)).max() for x in wants) <= tolerance
        ), mode


def test_printers_jpeg_is_not_inverted():
    for ink, colour in [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ]:
        data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert (
            b"Adobe" in data
            and np.abs(read_image(data)[8, 8].astype(int) - colour).max() <= 4
        )


def test_lab_tiff_has_its_colours():
    # L*=54, a*=81, b*=70, stored with 128 added.
    red = Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (138, 209, 198)])
    assert (
        np.abs(read_image(encoded(red, "TIFF"))[0, 0].astype(int) - (255, 0, 0)).max()
        <= 12
    )


def test_deep_values_without_a_number_are_black():
    a = np.array([[0, np.nan, 0.5, np.inf, -np.inf, 1]], np.float32)
    got = read_image(encoded(Image.fromarray(a), "TIFF"))[0, :, 0]
    assert got.tolist() == [0, 0, 128, 255, 0, 255]
    assert (
        read_image(
            encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF")
        ).max()
        == 0
    )
    for flat in (-7.0, 1e9, 0.0):
        assert (
            read_image(
                encoded(Image.fromarray(np.full((2, 2), flat, np.float32)), "TIFF")
            ).max()
            == 0
        )


UPRIGHT = {
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.transpose(1, 0, 2),
    6: lambda s: np.rot90(s, -1),
    7: lambda s: s[::-1, ::-1].transpose(1, 0, 2),
    8: lambda s: np.rot90(s, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_all_eight_ways_to_hold_a_camera(orientation):
    a = texture(5, 7)
    want, note = UPRIGHT[orientation](a), exif(orientation)
    lossless = [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ]
    for form, options in lossless:
        assert (
            read_image(encoded(Image.fromarray(a), form, exif=note, **options)) == want
        ).all(), form
    blocks = np.kron(a[:3, :4], np.ones((16, 16, 1))).astype(np.uint8)
    jpeg = read_image(
        encoded(Image.fromarray(blocks), "JPEG", exif=note, quality=95, subsampling=0)
    )
    assert np.abs(jpeg - UPRIGHT[orientation](blocks).astype(float)).mean() < 6


def test_damaged_exif_turns_nothing_and_warns_of_nothing():
    a = texture(8, 8)
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack(
        "<HHIIHHII", 0x112, 3, 2**31 - 1, 6, 0x10E, 2, 65535, 65535
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(encoded(Image.fromarray(a), "JPEG", exif=block)).shape == (
            8,
            8,
            3,
        )
    for odd in (0, 9, 77):
        assert (
            read_image(encoded(Image.fromarray(a), "PNG", exif=exif(odd))) == a
        ).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(form):
    frames = [Image.new("RGB", (6, 4), c) for c in ("red", "blue", "lime")]
    options = (
        {"lossless": True}
        if form == "WEBP"
        else {"compression": "tiff_lzw"}
        if form == "TIFF"
        else {}
    )
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (read_image(data) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    "form",
    ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "MPO", "AVIF"],
)
def test_content_decides_and_not_the_suffix(form, tmp_path):
    if form == "AVIF" and "AVIF" not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    im = Image.fromarray(np.kron(texture(4, 4), np.ones((8, 8, 1))).astype(np.uint8))
    for name in ["wrong.jpg", "wrong.png", "wrong"]:
        (tmp_path / name).write_bytes(encoded(im, form))
        assert (
            np.abs(read_image(tmp_path / name) - np.asarray(im).astype(float)).mean()
            < 25
        )
    assert (
        read_image(str(tmp_path / name)) == read_image((tmp_path / name).read_bytes())
    ).all()
    assert (
        read_image(memoryview((tmp_path / name).read_bytes()))
        == read_image(tmp_path / name)
    ).all()


# --- truncated, damaged, hostile ------------------------------------------------------

RGB, RGBA = Image.fromarray(texture()), Image.fromarray(texture(channels=4))
WHOLE = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive": encoded(RGB, "JPEG", progressive=True),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "turned": encoded(RGB, "JPEG", exif=exif(6)),
    "png": encoded(RGB, "PNG"),
    "turned png": encoded(RGB, "PNG", exif=exif(8)),
    "palette": encoded(RGBA.quantize(50), "PNG"),
    "deep": encoded(Image.fromarray(texture()[..., 0].astype(np.uint16) * 200), "PNG"),
    "gif": encoded(RGB.quantize(50), "GIF"),
    "animated gif": encoded(
        RGB.quantize(50),
        "GIF",
        save_all=True,
        append_images=[RGB.rotate(90).quantize(50)],
    ),
    "webp": encoded(RGB, "WEBP"),
    "animated webp": encoded(
        RGBA, "WEBP", save_all=True, append_images=[RGBA.rotate(90)]
    ),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "float": encoded(RGB.convert("F"), "TIFF"),
    "ppm": encoded(RGB, "PPM"),
    "jpeg2000": encoded(RGB, "JPEG2000", irreversible=True, quality_layers=[20, 5]),
    "mpo": encoded(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
}
# libtiff itself writes a line to stderr about damaged compressed files: in its own test
# only
DECODED = {name: read_image(data) for name, data in WHOLE.items()}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1, exclude_max=True), st.booleans())
def test_a_cut_file_is_refused_or_complete(name, where, near_the_end):
    data = WHOLE[name]
    cut = data[
        : len(data) - 1 - int(where * 30) if near_the_end else int(where * len(data))
    ]
    try:
        got = read_image(cut)
    except Unreadable as e:
        assert 0 < len(e.reason) < 60 and "\n" not in e.reason
    else:
        assert got.shape == DECODED[name].shape and (got == DECODED[name]).all()


def test_a_cut_in_the_middle_is_always_refused():
    for name, data in WHOLE.items():
        half = data[: int(len(data) * 0.45)]
        # The others can't tell.
        sure = name.split()[-1] in (
            "jpeg",
            "progressive",
            "png",
            "palette",
            "bmp",
            "tiff",
            "ppm",
        )
        assert reason(half) == "truncated" if sure else "truncated" in reason(half), (
            name
        )
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # as many scripts do
        try:
            assert "truncated" in reason(half), name
            assert ImageFile.LOAD_TRUNCATED_IMAGES
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def test_png_with_half_its_rows_but_a_proper_end():
    a = texture(20, 20)
    head = struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + r.tobytes() for r in a)

    def png(body):
        chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
            for k, d in chunks
        )

    assert (read_image(png(zlib.compress(rows))) == a).all()
    assert "truncated" in reason(png(zlib.compress(rows)[:200]))
    assert "truncated" in reason(png(zlib.compress(rows[:500])))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2**32 - 1))
def test_flipped_bytes_never_give_a_traceback(name, seed):
    rng, data = random.Random(seed), bytearray(WHOLE[name])
    for _ in range(rng.choice([1, 2, 20])):
        data[rng.randrange(rng.choice([64, len(data)]))] = rng.randrange(256)
    try:
        got = read_image(bytes(data), max_pixels=10**6)
        assert got.dtype == np.uint8 and got.ndim == 3
    except Unreadable as e:
        assert 0 < len(e.reason) < 60


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError,
        KeyError,
        zlib.error,
        SyntaxError,
        OverflowError,
        NotImplementedError,
    ],
)
def test_whatever_a_decoder_raises_is_a_reason(error, monkeypatch):
    def fail(*_):
        raise error("cannot")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    # Not turned, but read.
    assert (read_image(WHOLE["turned png"]).shape) == (60, 80, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(WHOLE["jpeg"]) == "damaged or truncated"
    monkeypatch.setitem(
        Image.OPEN, "JPEG", (fail, lambda head: head[:2] == b"\xff\xd8")
    )
    assert reason(WHOLE["jpeg"]) == "damaged or truncated"
    monkeypatch.setitem(Image.OPEN, "JPEG", (fail, lambda head: "no such library"))
    assert reason(WHOLE["jpeg"]) == "a format that this Pillow was built without"


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\x99\0\0\0WEBPVP8 ",
    b"BM",
    b"II*\0",
    b"P6 ",
    b"Pf ",
]


@quick
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_random_bytes_are_refused(magic, rest):
    try:
        read_image(magic + rest, max_pixels=10**6)
    except Unreadable as e:
        assert 0 < len(e.reason) < 60


def test_reasons_name_what_else_it_is():
    assert reason(b"") == "empty file"
    assert (
        reason(b"Dear colleague,\n")
        == reason(b"BMW drives")
        == reason(b"P3 is a gene")
        == "not an image"
    )
    assert "web page" in reason(b"\n<!DOCTYPE html><html>") and "PDF" in reason(
        b"%PDF-1.7 "
    )
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0heic"):
        assert "HEIC" in reason(b"\0\0\0\x18ftyp" + brands)
    assert "SVG" in reason(b'<?xml version="1.0"?>\n<svg xmlns="...">')
    assert "git lfs" in reason(b"version https://git-lfs.github.com/spec/v1")


# --- size -----------------------------------------------------------------------------


def bombs():
    """Headers that promise 40000 × 40000 pixels."""
    side = struct.pack(">II", 40000, 40000)
    png = bytearray(encoded(Image.new("L", (9, 9)), "PNG"))
    png[16:24] = side
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    gif = bytearray(encoded(Image.new("L", (9, 9)), "GIF"))
    gif[6:10] = struct.pack("<HH", 40000, 40000)
    bmp = bytearray(encoded(Image.new("L", (9, 9)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 40000, 40000)
    jpeg = bytearray(encoded(Image.new("L", (9, 9)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 40000, 40000)
    tiff = bytearray(encoded(Image.new("L", (9, 9)), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HH", tag, 4)) + 8
        tiff[at : at + 4] = struct.pack("<I", 40000)
    return {
        "png": png,
        "gif": gif,
        "bmp": bmp,
        "jpeg": jpeg,
        "tiff": tiff,
        "ppm": bytearray(b"P6 40000 40000 255\n"),
    }


def test_bombs_are_refused_by_their_header():
    start = time.perf_counter()
    for name, data in bombs().items():
        why = "too many pixels (40000 × 40000): make it smaller"
        assert reason(data) == why, name
    assert time.perf_counter() - start < 1


def test_limits_are_ours_and_not_pillows(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(data := encoded(RGB, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # its error begins at 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data, max_pixels=RGB.width * RGB.height).shape == (60, 80, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert "too many pixels (80 × 60)" in reason(
        data, max_pixels=RGB.width * RGB.height - 1
    )
    assert "too large" in reason(data, max_bytes=len(data) - 1)
    assert "too large" in reason(tmp_path / "a.png", max_bytes=len(data) - 1)
    assert read_image(tmp_path / "a.png", max_bytes=len(data)).shape == (60, 80, 3)


def test_thin_and_tiny_images():
    for w, h in [(1, 1), (20000, 1), (1, 20000), (2, 3)]:
        data = encoded(Image.new("RGB", (w, h), "teal"), "PNG")
        assert read_image(data).shape == (h, w, 3)
        assert (read_image(data, size=64) == [0, 128, 128]).all()


@quick
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 50), st.integers(0, 99))
def test_reading_at_a_size_is_reading_then_resizing(h, w, size, seed):
    a = texture(h, w, seed=seed)
    data = encoded(Image.fromarray(a), "PNG", exif=exif(seed % 8 + 1))
    small = resize_square(read_image(data), size)
    assert (read_image(data, size=size) == small).all() and small.shape == (
        size,
        size,
        3,
    )
    assert (resize_square(np.stack([a, a]), size)[1] == resize_square(a, size)).all()


def test_resizing_keeps_the_aspect_and_the_centre():
    a = texture(300, 400)
    # Short side to 96 …
    long = Image.fromarray(a).resize((128, 96), Image.Resampling.BICUBIC)
    want = np.asarray(long)[:, 16:112]  # … and the middle
    assert np.abs(resize_square(a, 96) - want.astype(float)).max() <= 1
    assert (resize_square(a[:200, :200], 200) == a[:200, :200]).all()
    wide = texture(10, 30)
    want = np.asarray(
        Image.fromarray(wide[:, 10:20]).resize((90, 90), Image.Resampling.BICUBIC)
    )
    assert np.abs(resize_square(wide, 90) - want.astype(float)).mean() < 5
    assert resize_square(a[None][:0], 7).shape == (0, 7, 7, 3)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "64", 10**9])
def test_impossible_sizes(size):
    for call in (
        lambda: resize_square(texture(), size),
        lambda: read_image(WHOLE["png"], size=size),
    ):
        with pytest.raises(BadValue, match="size"):
            call()


def test_impossible_images():
    a = texture()
    for bad in [a / 255, a[..., 0], a[..., :2], a[:0], a[None, :, :0], a[None, None]]:
        with pytest.raises(BadValue, match="expected uint8"):
            resize_square(bad, 8)
    for bad in [3, None, ["a.jpg"]]:
        with pytest.raises(BadValue, match="expected a path"):
            read_image(bad)


# --- files that are none --------------------------------------------------------------


@posix
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "through.jpg").symlink_to("pipe.jpg")
    (tmp_path / "good.png").write_bytes(WHOLE["png"])
    (tmp_path / "link.jpg").symlink_to("good.png")
    (tmp_path / "empty.png").touch()
    with socket.socket(socket.AF_UNIX) as s:
        monkeypatch.chdir(tmp_path)  # a socket's whole path may be too long
        s.bind("socket.jpg")
        found = {
            n: reason(tmp_path / n)
            for n in os.listdir(tmp_path)
            if n not in ("good.png", "link.jpg")
        }
    assert found == {
        "pipe.jpg": "not a regular file",
        "socket.jpg": "not a regular file",
        "through.jpg": "not a regular file",
        "folder.jpg": "a folder, not a file",
        "circle.jpg": "a link that leads in a circle",
        "broken.jpg": "a link that leads nowhere",
        "empty.png": "empty file",
    }
    assert reason("/dev/zero") == "not a regular file"
    assert (
        reason(tmp_path / "none.jpg") == "no such file"
        and reason("a\0b.jpg") == "not a file name"
    )
    assert "name too long" in reason(tmp_path / ("a" * 300))
    assert (read_image(tmp_path / "link.jpg") == DECODED["png"]).all()


@pytest.fixture
def nobodys():
    """A folder that everyone may enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@posix
def test_no_permission(nobodys):
    tmp_path = nobodys
    (tmp_path / "a.png").write_bytes(WHOLE["png"])
    (tmp_path / "a.png").chmod(0)
    (tmp_path / "locked").mkdir(mode=0)

    def look():
        try:
            read_image(tmp_path / "a.png")
        except Unreadable as e:
            return (
                e.reason,
                list_images(tmp_path)[1],
                refusal(tmp_path / "new", lambda f: f.write(b"a")),
            )

    why, left_out, writing = as_nobody(look)
    assert why == "cannot be read: permission denied"
    assert left_out == [(str(tmp_path / "locked"), "cannot be read: permission denied")]
    if os.geteuid() == 0:
        assert writing[0] == "NoRoom" and "you may not write there" in writing[1]
    (tmp_path / "locked").chmod(0o700)


NAMES = [
    "two\nlines.png",
    "🐈‍⬛.png",
    "قطة.png",
    "e\u0301.png",
    " .png",
    "-rf.png",
    "a'\"<&>.png",
    "\u202egnp.exe.png",
]


@posix
def test_names_in_any_script_and_in_none(tmp_path):
    raw = [n.encode() for n in NAMES] + [b"caf\xe9.png", b"\xff\xfe.png"]
    for name in raw:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(WHOLE["png"])
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/no_" + name + b".txt")).write_bytes(
            b"text"
        )
    paths, left_out = list_images(tmp_path)
    assert sorted(os.fsencode(p.name) for p in paths) == sorted(raw) and len(
        left_out
    ) == len(raw)
    assert all((read_image(p) == DECODED["png"]).all() for p in paths)
    json.dumps([*left_out, *map(printable, paths)], ensure_ascii=False).encode()
    assert any(r"\xff\xfe.png" in s.path for s in left_out)
    for s in paths:
        s.write_bytes(b"")
        with pytest.raises(Unreadable) as e:
            read_image(s)
        assert "\n" not in str(e.value).encode().decode() and e.value.path == printable(
            s
        )


@quick
@given(st.binary(max_size=30).filter(lambda b: b"\0" not in b))
def test_every_name_can_be_printed(name):
    text = printable(name)
    assert text == printable(os.fsdecode(name)) and json.loads(json.dumps(text)) == text
    line = printable(name, one_line=True)
    assert (
        line.splitlines() in ([], [line])
        and "\x1b" not in line
        and line.encode().decode() == line
    )
    try:
        assert name.decode() == text
    except UnicodeDecodeError:
        assert "\\x" in text


def test_unreadable_passes_between_processes():
    e = pickle.loads(pickle.dumps(Unreadable("a\nb.jpg", "truncated")))
    assert (e.path, e.reason, str(e)) == (
        "a\nb.jpg",
        "truncated",
        "a\\nb.jpg: truncated",
    )
    assert isinstance(e, UserMistake) and isinstance(e, ValueError)


# --- threads and warnings -------------------------------------------------------------


def noisy():
    """Files over which Pillow warns."""
    pal = RGB.quantize(50)
    mpo = WHOLE["mpo"].replace(b"MPF\0", b"MPF\0" + b"\0" * 4, 1)
    tiff = bytearray(WHOLE["tiff"])
    at = tiff.index(struct.pack("<HH", 262, 3))
    tiff[at : at + 8] = struct.pack("<HHI", 270, 2, 10**8)
    exif_block = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\xff\0\0\xff\xff\0\0"
    return [
        encoded(RGB, "JPEG", exif=exif_block),
        mpo,
        encoded(pal, "PNG", transparency=bytes(range(50))),
        bytes(tiff),
    ]


def quietly(data):
    try:
        return read_image(data).sum()
    except Unreadable as e:
        return e.reason


def test_pillow_would_warn_over_these_files():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in noisy():
            try:
                im = Image.open(io.BytesIO(data))
                im.getexif()
                im.convert("RGB")
            except Exception:
                pass
    assert len(caught) >= 3


def test_no_warning_leaks_from_any_thread_and_none_of_others_is_lost():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(quietly, noisy() * 30))
        assert not caught and warnings.filters == before
        done = threading.Event()
        # While a thread decodes, Pillow may warn in this one.
        with ThreadPoolExecutor(1) as pool:

            def busy():
                while not done.is_set():
                    quietly(WHOLE["webp"])

            pool.submit(busy)
            for _ in range(20):
                # as if from within PIL: the filter looks at the module's name
                exec(
                    "import warnings; warnings.warn('mine')",
                    {"__name__": "PIL.Image", "__warningregistry__": {}},
                )
            done.set()
    assert sum(str(w.message) == "mine" for w in caught) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in noisy():
            quietly(data)


def test_threads_read_what_one_thread_reads():
    jobs = [*WHOLE.values(), *(d[: len(d) // 2] for d in WHOLE.values())] * 4
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(quietly, jobs))
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    assert got == [quietly(d) for d in jobs] and files._decoding["threads"] == 0


# --- folders --------------------------------------------------------------------------


@posix
def test_circles_of_links_end_and_pictures_keep_their_real_path(tmp_path):
    album, b = tmp_path / "album", tmp_path / "album" / "b"
    b.mkdir(parents=True)
    (b / "1.jpg").touch()
    (album / "a").mkdir()
    for i in range(4):  # a tree of circles: following each path anew would never end
        (album / "a" / f"to_b{i}").symlink_to(b)
        (b / f"up{i}").symlink_to(album)
    (album / "z").mkdir()
    (album / "z" / "to_b").symlink_to(b)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.jpg").touch()
    (album / "outside").symlink_to(tmp_path / "elsewhere")
    (album / "self").symlink_to(album / "self")
    (album / "lost.jpg").symlink_to("nowhere")
    paths, left_out = list_images(album)
    assert [str(p.relative_to(album)) for p in paths] == ["b/1.jpg", "outside/2.jpg"]
    assert (
        sum(s.reason == "a link to a folder that is read already" for s in left_out)
        == 9
    )
    assert {
        Path(s.path).name: s.reason for s in left_out if "read already" not in s.reason
    } == {
        "self": "a link that leads in a circle",
        "lost.jpg": "a link that leads nowhere",
    }


@posix
def test_what_is_listed_and_what_is_left_out(tmp_path):
    names = (
        "b.JPG a.png z.txt Thumbs.db .DS_Store ._a.png c.HEIC d.svg sub.jpg/e.webp "
        ".git/f.png"
    )
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "scan").write_bytes(WHOLE["tiff"])
    (tmp_path / "README").write_text("BMW")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    paths, left_out = list_images(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in paths] == [
        "a.png",
        "b.JPG",
        "scan",
        "sub.jpg/e.webp",
    ]
    why = {str(Path(s.path).relative_to(tmp_path)): s.reason for s in left_out}
    assert (
        len(why) == 10 and why[".git"] == why[".DS_Store"] == why["._a.png"] == "hidden"
    )
    assert (
        why["z.txt"] == "not an image (.txt)"
        and "HEIC" in why["c.HEIC"]
        and "SVG" in why["d.svg"]
    )
    assert why["pipe.jpg"] == why["pipe"] == "not a regular file"
    flat, left_out = list_images(str(tmp_path), recursive=False)
    assert [p.name for p in flat] == ["a.png", "b.JPG", "scan"]
    assert (str(tmp_path / "sub.jpg"), "a folder inside") in left_out


def test_no_folder(tmp_path):
    with pytest.raises(NotFound, match="No such folder"):
        list_images(tmp_path / "none")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(BadValue, match="is a file"):
        list_images(tmp_path / "a.jpg")
    assert list_images(tmp_path) == ([tmp_path / "a.jpg"], [])


# --- sums -----------------------------------------------------------------------------


def test_sums_know_type_shape_and_values(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    a = np.arange(6, dtype=np.int32)
    different = [
        a,
        a.reshape(2, 3),
        a.reshape(3, 2),
        a.astype(np.int64),
        a.view(np.float32),
        a + 1,
        a[:0],
    ]
    assert len({sha256_array(x) for x in different}) == len(different)
    assert (
        sha256_array(a)
        == sha256_array(a.astype(">i4"))
        == sha256_array(np.repeat(a, 2)[::2])
    )
    assert sha256_array(np.asfortranarray(a.reshape(2, 3))) == sha256_array(
        a.reshape(2, 3)
    )
    with pytest.raises(BadValue):
        sha256_array(np.array([None]))


# --- writing --------------------------------------------------------------------------


def refusal(path, body, mode="wb"):
    """(kind, sentence) of the mistake that writing raises."""
    try:
        with atomic_write(path, mode) as f:
            body(f)
    except UserMistake as e:
        return type(e).__name__, str(e)


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path, "w") as f:
        f.write("猫\n")
    assert path.read_bytes() == "猫\n".encode()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), atomic_write(path) as f:
            f.write(b"half")
            raise error
    assert path.read_bytes() == "猫\n".encode() and os.listdir(tmp_path) == ["a.txt"]
    with atomic_write(path) as f:
        f.write(b"\0new")
    assert path.read_bytes() == b"\0new" and os.listdir(tmp_path) == ["a.txt"]
    if os.name == "posix":
        os.umask(mask := os.umask(0))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        (tmp_path / "link").symlink_to("a.txt")
        with atomic_write(tmp_path / "link") as f:
            f.write(b"through")
        assert path.read_bytes() == b"through" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, "NoRoom", "the disk is full. Free some space"),
        (errno.EDQUOT, "NoRoom", "your quota"),
        (errno.EROFS, "NoRoom", "the disk is read-only. Choose another folder"),
        (errno.EIO, "NoRoom", "the disk reports an error"),
    ],
)
def test_disk_errors_become_one_sentence(
    where, number, kind, words, tmp_path, monkeypatch
):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_):
        raise OSError(number, "as the system says it")

    if where != "write":
        monkeypatch.setattr(os, where, fail)
    found = refusal(
        tmp_path / "a", fail if where == "write" else lambda f: f.write(b"new")
    )
    monkeypatch.undo()
    assert (
        found[0] == kind
        and words in found[1]
        and str(tmp_path / "a") in found[1]
        and found[1].count("\n") == 0
    )
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_mistakes_in_the_name(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    expected = {
        "none/a": "NotFound",
        "file/a": "BadValue",
        "folder": "BadValue",
        "a" * 300: "BadValue",
    }
    for name, kind in expected.items():
        found = refusal(tmp_path / name, lambda f: f.write(b"a"))
        assert found[0] == kind and "can't be written" in found[1], name
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(
        tmp_path / "folder"
    )
    with pytest.raises(BadValue, match="mode"), atomic_write(tmp_path / "a", "a"):
        pass


def test_errors_about_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as e, atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert not isinstance(e.value, UserMistake)
    with pytest.raises(TimeoutError), atomic_write(tmp_path / "a"):
        raise TimeoutError("the network is slow")
    with pytest.raises(NoRoom, match="^said already$"), atomic_write(tmp_path / "a"):
        raise NoRoom("said already")
    assert not os.listdir(tmp_path)


WRITER = """
import sys, itertools
from transfer_course.engine.files import atomic_write
for i in itertools.count():
    with atomic_write(sys.argv[1]) as f:
        for _ in range(50): f.write(bytes([i % 256]) * 4096); f.flush()
    print(i, flush=True)
"""


@posix
def test_killed_while_writing(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "a"], stdout=subprocess.PIPE
    ) as p:
        for _ in range(5):
            p.stdout.readline()
        time.sleep(0.003)
        p.send_signal(signal.SIGKILL)
    data = (tmp_path / "a").read_bytes()
    assert len(data) == 50 * 4096 and len(set(data)) == 1


def test_two_writers_never_mix(tmp_path):
    def write(i):
        for _ in range(20):
            with atomic_write(tmp_path / "a") as f:
                f.write(bytes([i]) * 100)
                f.flush()
                f.write(bytes([i]) * 100)
            assert len(set((tmp_path / "a").read_bytes())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len((tmp_path / "a").read_bytes()) == 200 and os.listdir(tmp_path) == ["a"]


# --- bundled files --------------------------------------------------------------------


@pytest.fixture
def box(tmp_path):
    """A folder of bundled files, as the package has one."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"weights")
    sums = {"sub/w.bin": sha256_file(tmp_path / "sub" / "w.bin"), "gone.bin": "0" * 64}
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    return tmp_path


def test_bundled_files_are_checked(box, monkeypatch):
    monkeypatch.setattr(files, "assets_folder", lambda: box)
    assert asset("sub/w.bin") == box / "sub" / "w.bin"
    (box / "sub" / "w.bin").write_bytes(b"weightz")
    os.utime(box / "sub" / "w.bin", ns=(1, 1))
    with pytest.raises(Damaged, match=r"w\.bin is damaged.*Reinstall"):
        asset("sub/w.bin")
    with pytest.raises(NotFound, match=r"gone\.bin is missing.*Reinstall"):
        asset("gone.bin")
    with pytest.raises(NotFound, match="Did you mean 'sub/w.bin'"):
        asset("sub/w.bim")
    with pytest.raises(NotFound):
        asset("../checksums.json")


def test_a_file_is_summed_once_and_again_when_it_changes(box, monkeypatch):
    calls = []
    monkeypatch.setattr(
        files, "sha256_file", lambda p: calls.append(p) or sha256_file(p)
    )
    for _ in range(3):
        asset("sub/w.bin", box)
    assert len(calls) == 1
    os.utime(box / "sub" / "w.bin", ns=(5, 5))
    asset("sub/w.bin", box)
    assert len(calls) == 2


def test_damaged_list_of_sums(box):
    for text in ["{", "[]", '{"sub/w.bin": 3}']:
        (box / "checksums.json").write_text(text)
        with pytest.raises(Damaged):
            asset("sub/w.bin", box)
    (box / "checksums.json").unlink()
    with pytest.raises(NotFound, match="Reinstall"):
        asset("sub/w.bin", box)


def test_the_packages_own_files_are_whole():
    folder = files.assets_folder()
    if not (folder / "checksums.json").exists():
        pytest.skip("no bundled files yet")
    for name in json.loads((folder / "checksums.json").read_text()):
        assert asset(name).is_file()
