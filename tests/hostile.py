"""A folder of everything that a disk can hold, made from a seed.

Of each file it is known whether it must be used or must be listed.
`build(root, size)` makes it: "short" has every kind, "full" more than a thousand files.
"""

import io
import os
import socket
import stat
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin  # noqa: F401

SIDE = 28  # of an ordinary picture here: small, so that a thousand are made in seconds
CLASSES = [
    b"cats",
    b"d\xc3\xb6gs \xf0\x9f\x90\x95",
    "鳥\n2".encode(),
    b"caf\xe9",
    "\u202egnp".encode(),
]


class Thing(NamedTuple):
    """A file or folder below the root, and what has to become of it."""

    path: bytes
    kind: str
    used: bool | None  # None: either, but it must be one of the two
    why: str = ""  # a regular expression that the reason matches


# --- pictures -------------------------------------------------------------------------


def texture(rng, h=SIDE, w=SIDE, c=3):
    """uint8 (h, w, c): waves and noise, other ones each time."""
    y, x = np.mgrid[:h, :w]
    waves = [(x * rng.integers(1, 9) + y * rng.integers(1, 9)) % 256 for _ in range(c)]
    return np.clip(
        np.stack(waves, -1) + rng.integers(-20, 21, (h, w, c)), 0, 255
    ).astype(np.uint8)


def picture(rng, mode="RGB", h=SIDE, w=SIDE):
    """A Pillow image of any of the modes that files have."""
    if mode in ("RGB", "RGBA", "LA"):
        bands = texture(rng, h, w, len(mode))
        return Image.merge(
            mode,
            [
                Image.fromarray(np.ascontiguousarray(bands[..., i]))
                for i in range(len(mode))
            ],
        )
    grey = texture(rng, h, w, 1)[..., 0]
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 70_000 - 9)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32) / 255)
    if mode in ("CMYK", "YCbCr", "LAB"):
        return Image.merge(
            mode,
            [
                Image.fromarray(texture(rng, h, w, 1)[..., 0])
                for _ in range(3 + (mode == "CMYK"))
            ],
        )
    if mode == "P":
        return picture(rng, "RGB", h, w).quantize(int(rng.integers(2, 200)))
    return Image.fromarray(grey > 128) if mode == "1" else Image.fromarray(grey)


def encoded(im, form, **options):
    """The bytes of a whole image file."""
    im.save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def frames(rng, mode="RGB", n=3):
    """An image and the frames that follow it, for `save`."""
    return picture(rng, mode), dict(
        save_all=True, append_images=[picture(rng, mode) for _ in range(n)]
    )


def exif(value, kind=3):
    """An EXIF block with an orientation, which need not be a sensible one."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack(
        "<HHIHHI", 0x112, kind, 1, value, 0, 0
    )


def chunks(*parts):
    """A PNG of these chunks."""
    body = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
        for k, d in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png(w, h, depth, colour, idat, *extra):
    """A PNG whose pixels are given as they stand in the file."""
    return chunks(
        (b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)),
        *extra,
        (b"IDAT", idat),
        (b"IEND", b""),
    )


def zeros(n, step=1 << 20):
    """`n` zero bytes, deflated without ever holding them."""
    z = zlib.compressobj(1)
    out = [z.compress(bytes(min(step, n - i))) for i in range(0, n, step)]
    return b"".join(out) + z.flush()


def small_png(rng, *extra):
    """A whole 8 × 8 PNG with chunks of ours before its pixels."""
    rows = b"".join(b"\0" + r.tobytes() for r in texture(rng, 8, 8))
    return png(8, 8, 8, 2, zlib.compress(rows), *extra)


def animated(rng, form, **options):
    im, more = frames(rng, "P" if form == "GIF" else "RGB")
    return encoded(im, form, **more, **options)


def ycck(rng):
    """A CMYK JPEG that says it is YCCK: Adobe's transform byte is 2."""
    data = bytearray(encoded(picture(rng, "CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def holes(rng):
    """A float TIFF with NaN and infinities."""
    a = texture(rng, SIDE, SIDE, 1)[..., 0].astype(np.float32)
    a[rng.random(a.shape) < 0.2] = np.nan
    a[0, :3] = np.inf, -np.inf, np.nan
    return encoded(Image.fromarray(a), "TIFF")


def _sound():
    """kind -> (suffix, maker) of pictures that every decent program reads."""
    yield (
        "jpeg",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", quality=int(r.integers(5, 96))),
    )
    yield (
        "jpeg progressive",
        ".JPG",
        lambda r: encoded(picture(r), "JPEG", progressive=True),
    )
    yield "jpeg grey", ".jpeg", lambda r: encoded(picture(r, "L"), "JPEG")
    yield (
        "jpeg with restarts",
        ".jpe",
        lambda r: encoded(picture(r), "JPEG", restart_marker_blocks=1),
    )
    yield "jpeg CMYK", ".jpg", lambda r: encoded(picture(r, "CMYK"), "JPEG")
    yield "jpeg YCCK", ".jpg", ycck
    yield (
        "jpeg and more behind it",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG") + r.bytes(500),
    )
    yield "mpo", ".mpo", lambda r: animated(r, "MPO")
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        yield f"png {mode}", ".png", lambda r, m=mode: encoded(picture(r, m), "PNG")
    yield (
        "png P transparent",
        ".png",
        lambda r: encoded(picture(r, "P"), "PNG", transparency=0),
    )
    yield (
        "png P many alphas",
        ".png",
        lambda r: encoded(picture(r, "P"), "PNG", transparency=r.bytes(2)),
    )
    yield (
        "png L transparent",
        ".png",
        lambda r: encoded(picture(r, "L"), "PNG", transparency=int(r.integers(256))),
    )
    yield (
        "png RGB transparent",
        ".png",
        lambda r: encoded(picture(r), "PNG", transparency=(1, 2, 3)),
    )
    yield (
        "png and more behind it",
        ".png",
        lambda r: encoded(picture(r), "PNG") + b"PK\x03\x04" + r.bytes(99),
    )
    yield "png animated", ".apng", lambda r: animated(r, "PNG")
    yield (
        "png 16 bit RGB",
        ".png",
        lambda r: png(
            8, 8, 16, 2, zlib.compress(b"".join(b"\0" + r.bytes(48) for _ in range(8)))
        ),
    )
    yield "gif", ".gif", lambda r: encoded(picture(r, "P"), "GIF")
    yield (
        "gif transparent",
        ".gif",
        lambda r: encoded(picture(r, "P"), "GIF", transparency=0),
    )
    yield "gif animated", ".gif", lambda r: animated(r, "GIF")
    yield "webp", ".webp", lambda r: encoded(picture(r), "WEBP")
    yield (
        "webp lossless alpha",
        ".webp",
        lambda r: encoded(picture(r, "RGBA"), "WEBP", lossless=True),
    )
    yield "webp animated", ".webp", lambda r: animated(r, "WEBP")
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        yield f"bmp {mode}", ".bmp", lambda r, m=mode: encoded(picture(r, m), "BMP")
    for mode in ("RGB", "RGBA", "CMYK", "LAB", "1", "I;16", "I", "F", "P"):
        yield f"tiff {mode}", ".tif", lambda r, m=mode: encoded(picture(r, m), "TIFF")
    for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield (
            f"tiff {how}",
            ".tiff",
            lambda r, h=how: encoded(picture(r), "TIFF", compression=h),
        )
    yield (
        "tiff group4",
        ".tiff",
        lambda r: encoded(picture(r, "1"), "TIFF", compression="group4"),
    )
    yield "tiff of several pages", ".tiff", lambda r: animated(r, "TIFF")
    yield "tiff float with NaN and inf", ".tiff", holes
    yield "ppm", ".ppm", lambda r: encoded(picture(r), "PPM")
    yield "pgm", ".pgm", lambda r: encoded(picture(r, "L"), "PPM")
    yield "pbm", ".pbm", lambda r: encoded(picture(r, "1"), "PPM")
    yield "pfm", ".pfm", lambda r: encoded(picture(r, "F"), "PPM")
    yield "jpeg2000", ".jp2", lambda r: encoded(picture(r), "JPEG2000")
    yield "avif", ".avif", lambda r: encoded(picture(r), "AVIF", max_threads=1)


SOUND = {
    kind: (suffix, make)
    for kind, suffix, make in _sound()
    if kind != "avif" or "AVIF" in Image.SAVE
}


def _odd():
    """Pictures that are whole and strange."""
    for turn in range(1, 9):
        yield (
            f"exif {turn}",
            ".jpg",
            lambda r, t=turn: encoded(picture(r, h=20, w=31), "JPEG", exif=exif(t)),
        )
        yield (
            f"exif {turn} in png",
            ".png",
            lambda r, t=turn: encoded(picture(r, h=20, w=31), "PNG", exif=exif(t)[6:]),
        )
    yield "exif 0", ".jpg", lambda r: encoded(picture(r), "JPEG", exif=exif(0))
    yield "exif 77", ".jpg", lambda r: encoded(picture(r), "JPEG", exif=exif(77))
    yield (
        "exif of text",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", exif=exif(6, kind=2)),
    )
    yield (
        "exif of noise",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", exif=b"Exif\0\0" + r.bytes(60)),
    )
    yield (
        "exif in a circle",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", exif=exif(6)[:-4] + struct.pack("<I", 8)),
    )
    yield (
        "exif cut",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", exif=exif(6)[: int(r.integers(7, 25))]),
    )
    yield (
        "icc of noise",
        ".jpg",
        lambda r: encoded(picture(r), "JPEG", icc_profile=r.bytes(300)),
    )
    for w, h in ((1, 1), (20_000, 1), (1, 20_000), (2, 3), (3000, 2)):
        for form, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
            yield (
                f"{w}x{h} {suffix[1:]}",
                suffix,
                lambda r, f=form, w=w, h=h: encoded(picture(r, h=h, w=w), f),
            )
    for form, suffix in (
        ("PNG", ".jpg"),
        ("JPEG", ".png"),
        ("WEBP", ".gif"),
        ("GIF", ".jpg"),
        ("BMP", ".jpeg"),
        ("TIFF", ".png"),
        ("JPEG", ""),
    ):
        yield (
            f"{form} called {suffix or 'nothing'}",
            suffix,
            lambda r, f=form: encoded(picture(r), f),
        )
    yield "gif without its end", ".gif", lambda r: encoded(picture(r, "P"), "GIF")[:-1]


ODD = {kind: (suffix, make) for kind, suffix, make in _odd()}

# --- no pictures ----------------------------------------------------------------------

DAMAGED = "truncated|damaged|not an image"


def cuts(form, data):
    """place -> where to cut a file of this form so that some of its picture is lost."""
    n = len(data)
    tables = {
        "JPEG": data.find(b"\xff\xc0") + 6,
        "PNG": 20,
        "GIF": 12,
        "WEBP": 18,
        "TIFF": 20,
        "BMP": 30,
        "PPM": 7,
        "JPEG2000": 60,
    }[form]
    start = {
        "JPEG": data.find(b"\xff\xda"),
        "PNG": 41,
        "GIF": 800,
        "WEBP": 30,
        "TIFF": 150,
        "BMP": 54,
        "PPM": 15,
        "JPEG2000": 220,
    }[form]
    last = {"PNG": 60, "GIF": 30, "JPEG": 12}.get(form, 2)
    return {
        "header": min(9, tables),
        "tables": tables,
        "first": start + 12,
        "middle": (start + n) // 2,
        "last": n - last,
    }


def _torn():
    for form, suffix in (
        ("JPEG", ".jpg"),
        ("PNG", ".png"),
        ("GIF", ".gif"),
        ("WEBP", ".webp"),
        ("TIFF", ".tif"),
        ("BMP", ".bmp"),
        ("PPM", ".ppm"),
    ):
        for place in ("header", "tables", "first", "middle", "last"):

            def make(r, form=form, place=place):
                data = encoded(
                    picture(r).quantize(256) if form == "GIF" else picture(r), form
                )
                at = cuts(form, data)[place] - (
                    int(r.integers(3)) if place in ("first", "middle") else 0
                )
                assert 0 < at < len(data)
                return data[:at]

            yield f"{form} cut: {place}", suffix, make


def _flipped(r):
    """A PNG with a wrong byte among its pixels, which its checksum tells."""
    data = bytearray(encoded(picture(r), "PNG"))
    data[int(r.integers(50, len(data) - 30))] ^= int(r.integers(1, 256))
    return bytes(data)


def _text(r):
    return (
        "Dear colleague, " * int(r.integers(1, 90)) + str(r.integers(10**9))
    ).encode()


def _others():
    """(kind, suffix, maker, reason) of what is no picture, under the name of one."""
    yield "empty", ".jpg", lambda r: b"", "empty file"
    yield "one byte", ".png", lambda r: r.bytes(1), "not an image"
    yield (
        "random bytes",
        ".jpg",
        lambda r: b"\0" + r.bytes(int(r.integers(1, 3000))),
        "not an image",
    )
    for name, magic in (
        ("jpeg", b"\xff\xd8\xff\xe0"),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("gif", b"GIF89a"),
        ("tiff", b"II*\0"),
        ("webp", b"RIFF\x40\0\0\0WEBPVP8 "),
    ):
        yield (
            f"random bytes after {name}'s first ones",
            ".jpg",
            lambda r, m=magic: m + r.bytes(200),
            DAMAGED + "|too many pixels",
        )
    yield "text", ".jpg", _text, "not an image"
    yield (
        "text that begins like a bitmap",
        ".jpg",
        lambda r: b"BMW " + _text(r),
        "not an image",
    )
    yield (
        "web page",
        ".jpg",
        lambda r: b"<!DOCTYPE html><html><body>404 " + _text(r),
        "a web page",
    )
    yield "PDF", ".png", lambda r: b"%PDF-1.7\n" + r.bytes(300), "a PDF"
    yield (
        "SVG",
        ".png",
        lambda r: b'<?xml version="1.0"?><svg xmlns="x"/>' + _text(r),
        "SVG",
    )
    yield (
        "HEIC",
        ".jpg",
        lambda r: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + r.bytes(99),
        "HEIC",
    )
    yield (
        "LFS pointer",
        ".jpg",
        lambda r: b"version https://git-lfs.github.com/spec/v1\noid " + _text(r),
        "git lfs",
    )
    yield "zip", ".png", lambda r: b"PK\x03\x04" + r.bytes(300), "not an image"
    yield "png with a wrong byte", ".png", _flipped, DAMAGED
    yield (
        "png without pixels",
        ".png",
        lambda r: chunks(
            (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IEND", b"")
        ),
        DAMAGED,
    )
    yield (
        "png of no width",
        ".png",
        lambda r: png(0, 8, 8, 2, zlib.compress(r.bytes(9))),
        DAMAGED,
    )
    yield "jpeg of no height", ".jpg", lambda r: _jpeg_claims(r, 28, 0), DAMAGED
    yield (
        "png with too few rows",
        ".png",
        lambda r: png(8, 8, 8, 2, zlib.compress(b"\0" * 60)),
        DAMAGED,
    )


def _jpeg_claims(r, w, h):
    data = bytearray(encoded(picture(r), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", h, w)
    return bytes(data)


def _tiff_claims(r, w, h, **options):
    data = bytearray(encoded(picture(r), "TIFF", **options))
    for tag, value in ((256, w), (257, h)):
        for kind in (3, 4):
            at = data.find(struct.pack("<HHI", tag, kind, 1))
            if at >= 0:
                data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


def _jp2_claims(r, side):
    """Small in its box, huge in its codestream."""
    data = bytearray(encoded(picture(r), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">II", side, side)
    return bytes(data)


def _claim(data, at, packed):
    return data[:at] + packed + data[at + len(packed) :]


def _bombs():
    """(kind, suffix, maker, reason) of small files that claim to be huge."""
    huge = "too many pixels"
    yield (
        "bomb: png header",
        ".png",
        lambda r: png(40_000, 40_000, 8, 2, r.bytes(50)),
        huge,
    )
    yield (
        "bomb: png of 2^31 pixels a row",
        ".png",
        lambda r: png(2**31 - 1, 1, 8, 2, r.bytes(50)),
        huge,
    )
    yield (
        "bomb: gif header",
        ".gif",
        lambda r: _claim(encoded(picture(r, "P"), "GIF"), 6, b"\xff" * 4),
        huge,
    )
    yield (
        "bomb: bmp header",
        ".bmp",
        lambda r: _claim(
            encoded(picture(r), "BMP"), 18, struct.pack("<ii", 50_000, 50_000)
        ),
        huge,
    )
    yield "bomb: jpeg header", ".jpg", lambda r: _jpeg_claims(r, 65_500, 65_500), huge
    yield "bomb: tiff header", ".tif", lambda r: _tiff_claims(r, 60_000, 60_000), huge
    yield (
        "bomb: tiff of 2^32 pixels",
        ".tif",
        lambda r: _tiff_claims(r, 2**32 - 1, 2**32 - 1, compression="tiff_lzw"),
        huge,
    )
    yield (
        "bomb: ppm header",
        ".ppm",
        lambda r: b"P6 99999 99999 255\n" + r.bytes(40),
        huge,
    )
    yield (
        "bomb: webp header",
        ".webp",
        lambda r: (
            b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0"
            + b"\xfe\x3f\0" * 2
            + r.bytes(60)
        ),
        DAMAGED + "|" + huge,
    )
    yield (
        "bomb: jpeg2000 codestream",
        ".jp2",
        lambda r: _jp2_claims(r, 2**31 - 1),
        DAMAGED + "|" + huge,
    )
    yield (
        "bomb: tiff directory",
        ".tif",
        lambda r: b"II*\0\x08\0\0\0\xff\xff" + r.bytes(12 * 300),
        DAMAGED,
    )
    yield (
        "tiff directory in a circle",
        ".tif",
        lambda r: b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + r.bytes(9),
        DAMAGED,
    )


def _heavy():
    """(kind, suffix, maker) of tiny files that are whole pictures just below the limit.

    Each must be used.
    """
    yield (
        "heavy: 98 million pixels of 1 bit",
        ".png",
        lambda r: png(9900, 9890 + int(r.integers(9)), 1, 0, zeros(9900 * 1239)),
    )
    yield (
        "heavy: 98 million RGBA pixels",
        ".png",
        lambda r: heavy_rgba(9890 + int(r.integers(9))),
    )
    yield "heavy: pixels without end", ".png", lambda r: small_png_with_more(r)
    yield (
        "heavy: png text",
        ".png",
        lambda r: small_png(r, (b"zTXt", b"a\0\0" + zeros(60_000_000))),
    )


def heavy_rgba(h):
    """A tiny file of 9900 × h transparent pixels."""
    return png(9900, h, 8, 6, zeros((9900 * 4 + 1) * h))


def small_png_with_more(r):
    """A small PNG whose stream goes on for 200 MB after the last row."""
    z = zlib.compressobj(1)
    rows = b"".join(b"\0" + row.tobytes() for row in texture(r, 8, 8))
    body = (
        z.compress(rows)
        + b"".join(z.compress(bytes(1 << 20)) for _ in range(200))
        + z.flush()
    )
    return png(8, 8, 8, 2, body)


TORN = {kind: (suffix, make) for kind, suffix, make in _torn()}
OTHERS = {kind: (suffix, make, why) for kind, suffix, make, why in _others()}

# --- names, folders, links ------------------------------------------------------------

NAMES = [
    b"two\nlines.png",
    "🐈\u200d⬛.png".encode(),
    "قطة.png".encode(),
    "\u202egnp.exe.png".encode(),
    b"caf\xe9.png",
    b"\xff\xfe\x80.png",
    b"-rf.png",
    b"a'\"<&>$(id);`.png",
    b"%s%n{0}.png",
    b"\x1b[31mred\x07.png",
    b"a\\b.png",
    "e\u0301.png".encode(),
    "\u00e9.png".encode(),
    b"n" * 246 + b".png",
    "猫".encode() * 82 + b".png",
    b"con.png",
    b"a.png.jpg.png",
    b"a...png.PNG",
    "\u2028.png".encode(),
]


def _name(i, r):
    """The i-th odd name; after the first round they get a number."""
    name = NAMES[i % len(NAMES)]
    return (
        name if i < len(NAMES) else b"%d" % i + (name if len(name) < 240 else name[10:])
    )


class Builder:
    """Writes files and notes what they are."""

    def __init__(self, root, seed):
        self.root, self.things, self.n, self.seed = os.fsencode(root), [], 0, seed

    def rng(self):
        """A generator of its own for every file."""
        self.n += 1
        return np.random.default_rng([self.seed, self.n])

    def note(self, path, kind, used, why=""):
        """A thing that `path` is."""
        self.things.append(Thing(path, kind, used, why))

    def make(self, path):
        """The whole path of a new file, its folder made."""
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        return full

    def write(self, path, data, kind, used, why=""):
        """A file."""
        with open(self.make(path), "xb") as f:
            f.write(data)
        self.note(path, kind, used, why)

    def add(self, kind, suffix, make, used, why=""):
        """A file of this kind in the class whose turn it is."""
        r = self.rng()
        name = (
            CLASSES[self.n % len(CLASSES)]
            + f"/{self.n:04d} {kind.replace(':', '').replace('/', '')}{suffix}".encode()
        )
        self.write(name, make(r), kind, used, why)


def _pictures(b, times):
    for _ in range(times):
        for table in (SOUND, ODD):
            for kind, (suffix, make) in table.items():
                b.add(kind, suffix, make, True)


def _rubbish(b, times):
    bombs = list(_bombs())
    for _ in range(times):
        for kind, (suffix, make) in TORN.items():
            b.add(kind, suffix, make, False, DAMAGED)
        for kind, (suffix, make, why) in OTHERS.items():
            b.add(kind, suffix, make, False, why)
        for kind, suffix, make, why in bombs:
            b.add(kind, suffix, make, False, why)


def _names(b, n):
    for i in range(n):
        r = b.rng()
        b.write(
            CLASSES[i % 5] + b"/" + _name(i, r),
            encoded(picture(r), "PNG"),
            "odd name",
            True,
        )
        r = b.rng()
        b.write(
            CLASSES[i % 5] + b"/" + _name(i, r)[-250:-4] + b".txt",
            _text(r),
            "odd name, no image",
            False,
            r"not an image \(.txt\)",
        )


def _places(b):
    """Folders: deep ones, empty ones, hidden ones, files where none belong."""

    def one():
        return encoded(picture(b.rng()), "PNG")

    b.write(
        b"cats/" + b"/".join([b"deep"] * 60) + b"/a.png", one(), "deep folder", True
    )
    b.write(b"cats/folder.jpg/inside.png", one(), "in a folder called .jpg", True)
    for name in (b"empty class", b"empty \xff"):
        b.make(name + b"/x")
        b.note(name, "empty class", False, "an empty class")
    b.make(b"cats/empty folder/x")
    for i in range(3):
        b.write(
            b"class of rubbish/%d.jpg" % i,
            _text(b.rng()),
            "in a class of rubbish",
            False,
            "not an image",
        )
    b.note(b"class of rubbish", "class of rubbish", False, "no readable image in it")
    b.write(b"only one/a.png", one(), "class of one image", True)
    b.write(b"only two/a.png", one(), "class of two images", True)
    b.write(b"only two/b.png", one(), "class of two images", True)
    b.write(b"in no class.png", one(), "in no class", False, "not in a class folder")
    for name in (
        b".hidden.png",
        b"cats/.hidden.png",
        b"cats/._a.jpg",
        b"cats/.DS_Store",
    ):
        b.write(name, one(), "hidden", False, "hidden")
    with open(b.make(b"cats/.git/a.png"), "wb") as f:
        f.write(one())
    b.note(b"cats/.git", "hidden folder", False, "hidden")
    for name in (
        b"notes.txt",
        b"Thumbs.db",
        b"table.csv",
        b"model.safetensors",
        b"README",
        b"photo.heic",
        b"a.svg",
    ):
        b.write(
            b"cats/" + name,
            _text(b.rng()),
            "other suffix",
            False,
            "not an image|HEIC|SVG",
        )
    same = one()
    for name in (b"cats/same.png", b"caf\xe9/same.png", b"caf\xe9/same again.png"):
        b.write(name, same, "same picture under two classes", True)


def _links(b):
    """Links to files, to folders, in circles, to nowhere; pipes, sockets, devices."""

    def link(target, path):
        os.symlink(target, b.make(path))

    b.write(
        b"cats/target.png", encoded(picture(b.rng()), "PNG"), "target of a link", True
    )
    link(b"target.png", b"cats/link.png")
    b.note(b"cats/link.png", "link to a file", True)
    for name, target, why in (
        (b"nowhere.jpg", b"not there", "leads nowhere"),
        (b"circle.jpg", b"circle.jpg", "in a circle"),
        (b"loop", b"loop", "in a circle"),
    ):
        link(target, b"cats/" + name)
        b.note(b"cats/" + name, "link that leads nowhere", False, why)
    for name, target in ((b"up", b".."), (b"self", b"."), (b"over", b"../only two")):
        link(target, b"cats/" + name)
        b.note(b"cats/" + name, "link to a folder", False, "read already")
    link(b"knot", b"knot")
    b.note(b"knot", "link that leads nowhere", False, "in a circle")
    link(b"nowhere at all", b"lost class")
    b.note(b"lost class", "link that leads nowhere", False, "leads nowhere")
    link(b"/dev/zero", b"cats/zero.jpg")
    b.note(b"cats/zero.jpg", "link to a device", False, "not a regular file")
    os.mkfifo(b.make(b"cats/pipe.jpg"))
    b.note(b"cats/pipe.jpg", "pipe", False, "not a regular file")
    _socket(b, b"cats/socket.jpg")


def _socket(b, path):
    """A socket's whole path may be too long for it, so it is made where we stand."""
    here, full = os.getcwd(), b.make(path)
    os.chdir(os.path.dirname(full))
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.basename(full))
    finally:
        os.chdir(here)
    b.note(path, "socket", False, "not a regular file")


def too_deep(root, name=b"cats/abyss", part=b"d" * 200, depth=25):
    """A folder whose path is longer than the system takes; a picture is at its end."""
    full = os.path.join(os.fsencode(root), name)
    os.makedirs(full)
    at = os.open(full, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(part, dir_fd=at)
        at, old = os.open(part, os.O_RDONLY, dir_fd=at), at
        os.close(old)
    os.close(os.open(b"a.png", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    return name


def build(root, size="short", seed=0):
    """Make the folder; returns its `Thing`s.

    "short" has every kind once, "full" has more than a thousand files.
    """
    b = Builder(root, seed)
    times = {"short": 1, "full": 6}[size]
    _pictures(b, times)
    _rubbish(b, times)
    _names(b, len(NAMES) * (1 if size == "short" else 2))
    _places(b)
    _links(b)
    for _ in range({"short": 1, "full": 3}[size]):
        for kind, suffix, make in _heavy():
            if size == "full" or "RGBA" not in kind:  # seconds each
                b.add(kind, suffix, make, True)
    too_deep(root)
    b.note(b"cats/abyss", "path too long", False, "too long")
    return b.things


def contents(root):
    """path -> what is there, of the whole tree: to see that two runs make the same."""
    found = {}
    for folder, folders, names in os.walk(os.fsencode(root)):
        folders[:] = [f for f in folders if f != b"abyss"]
        for name in folders + names:
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            what = os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
            if stat.S_ISREG(mode):
                with open(path, "rb") as f:
                    what = f.read()
            found[os.path.relpath(path, os.fsencode(root))] = what
    return found
