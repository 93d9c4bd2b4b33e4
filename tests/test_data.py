# ruff: noqa: B905
"""vision.data.

Splits that keep their promises, folders as people have them, the bundled styles,
augmentation.
"""

import csv
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transfer_course.engine import files
from transfer_course.engine.duplicates import near_copies, thumbnail
from transfer_course.engine.errors import (
    BadValue,
    Damaged,
    NotFound,
    Offline,
    UserMistake,
)
from transfer_course.engine.files import read_image, resize_square
from transfer_course.vision import datasets, images
from transfer_course.vision.data import (
    AUGMENTATIONS,
    STYLE_CLASSES,
    STYLES,
    ImageDataset,
    augment,
    augment_params,
    image_folder,
    named_dataset,
    styles,
)

FIVE = files.assets_folder() / "five_styles"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*a, **k):
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def whole():
    """All of Five Styles; a test must not change it."""
    return styles(part="all")


def blank(labels, groups=None, classes=None, side=2):
    return ImageDataset(
        np.zeros((len(labels), side, side, 3), np.uint8), labels, classes, groups=groups
    )


# ---------------------------------------------------------------- splits


@st.composite
def labelled(draw):
    """Labels and groups; a group may mix classes and hold unlabelled images."""
    n, c = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(-1, c - 1), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["none", "pure", "mixed"]))
    ids = draw(
        st.lists(st.integers(0, draw(st.integers(1, 30))), min_size=n, max_size=n)
    )
    groups = {
        "none": None,
        "mixed": ids,
        "pure": [f"{y}/{g}" for y, g in zip(labels, ids)],
    }[kind]
    return blank(np.array(labels), groups, [str(i) for i in range(c)]), kind


def shares():
    return st.sampled_from([0, 0.1, 0.15, 0.2, 1 / 3, 0.45])


@settings(max_examples=150, deadline=None)
@given(labelled(), shares(), shares(), st.integers(0, 3))
def test_a_split_keeps_its_promises(d_kind, valid, test, seed):
    d, kind = d_kind
    d.names = np.arange(len(d)).astype(str)
    parts, again = d.split(valid, test, seed), d.split(valid, test, seed)
    rows = [p.names.astype(int) for p in parts]
    assert sorted(np.concatenate(rows)) == list(range(len(d)))
    assert all((a.names == b.names).all() for a, b in zip(parts, again))
    if d.groups is not None:
        train, val, tst = (set(p.groups.tolist()) for p in parts)
        assert not train & val and not train & tst and not val & tst
    assert all((p.labels >= 0).all() for p in parts[1:])
    assert not (valid == 0 and len(parts.valid)) and not (test == 0 and len(parts.test))
    assert set(d.labels) - {-1} <= set(parts.train.labels)  # every class can be learned
    wanted = [p for p, f in zip(parts[1:], (valid, test)) if f]
    for c in range(len(d.classes)):
        own = d.labels == c
        units = own.sum() if d.groups is None else len(set(d.groups[own]))
        if kind != "mixed" and units > len(wanted):
            assert all((p.labels == c).any() for p in wanted), c


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(3, 60), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.15, 0.2, 0.4]),
    st.integers(0, 5),
)
def test_fractions_come_out(counts, fraction, seed):
    d = blank(np.repeat(np.arange(len(counts)), counts))
    _, valid, test = d.split(fraction, fraction, seed)
    for part in (valid, test):
        for n, got in zip(counts, part.counts().values()):
            assert abs(got - max(1, fraction * n)) <= 1.5
        assert (
            abs(len(part) - sum(max(1, fraction * n) for n in counts))
            <= len(counts) / 2 + 1
        )


def test_rounding_is_given_back():
    # A fifth of 7 is 1.4: rounded down everywhere it would be 0.14 of all.
    d = blank(np.repeat(np.arange(40), 7))
    assert abs(len(d.split(0.2, 0).valid) / len(d) - 0.2) < 0.01


def test_tiny_folders_split():
    for seed in range(5):
        train, valid, test = blank([0, 0, 1, 1]).split(0.2, 0, seed)
        assert sorted(train.labels) == sorted(valid.labels) == [0, 1] and len(test) == 0
        parts = blank([0, 0, 1, 1]).split(0.2, 0.2, seed)
        assert [len(p) for p in parts] == [2, 1, 1]
        parts = blank([0, 0, 0, 1, 1, 1]).split(0.2, 0.2, seed)
        assert [sorted(p.labels) for p in parts] == [[0, 1]] * 3
    assert [len(p) for p in blank([0]).split()] == [1, 0, 0]
    assert [len(p) for p in blank([]).split()] == [0, 0, 0]
    assert [len(p) for p in blank([-1, -1, -1]).split()] == [3, 0, 0]


def test_a_split_follows_the_group_not_the_row():
    d = blank(np.repeat([0, 1], 30), groups=np.repeat(np.arange(20), 3))
    order = np.random.default_rng(0).permutation(60)
    a, b = d.split(seed=1), d.subset(order).split(seed=1)
    assert [set(p.groups) for p in a] == [set(p.groups) for p in b]
    assert set(d.split(seed=2).test.groups) != set(a.test.groups)


@pytest.mark.parametrize("bad", [(-0.1, 0.2), (0.5, 0.5), (1, 0), (float("nan"), 0)])
def test_bad_fractions(bad):
    with pytest.raises(BadValue, match="fractions"):
        blank([0, 1]).split(*bad)


def test_styles_split_by_identity():
    d = styles()
    for seed in range(3):
        parts = d.split(seed=seed)
        assert not set(parts.train.groups) & set(parts.test.groups) | set(
            parts.valid.groups
        ) & set(parts.test.groups)
        assert all(abs(len(p) / len(d) - 0.2) < 0.02 for p in parts[1:])
        assert all(set(p.labels) == set(range(15)) for p in parts)


# ---------------------------------------------------------------- the data set


def test_columns_travel_together():
    n = 6
    d = ImageDataset(
        np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3),
        [0, 1, 0, 1, -1, 0],
        ["a", "b"],
        groups=list("uvwxyz"),
        domains=["p"] * 3 + ["q"] * 3,
        names=list("ABCDEF"),
        alpha=np.arange(n)[:, None, None] * np.ones((1, 2, 2), np.uint8),
    )
    for index in (
        [4, 1],
        np.array([False, True, False, False, True, False]),
        slice(1, 5, 3),
        np.array([-2, 1]),
    ):
        s = d.subset(index)
        i = np.arange(n)[index] if not isinstance(index, list) else np.array(index)
        assert (
            (s.images == d.images[i]).all()
            and (s.labels == d.labels[i]).all()
            and (s.groups == d.groups[i]).all()
        )
        assert (
            (s.names == d.names[i]).all()
            and (s.alpha[:, 0, 0] == i % n).all()
            and s.digests() == [d.digests()[j] for j in i]
        )
    both = d.concat(d.only(["b"]))
    assert (
        len(both) == 8
        and both.groups.tolist() == list("uvwxyzvx")
        and both.labels.tolist() == [0, 1, 0, 1, -1, 0, 1, 1]
    )
    assert pickle.loads(pickle.dumps(d)).digests() == d.digests()
    assert (
        d.counts() == {"a": 3, "b": 2}
        and "6 images" in repr(d)
        and "1 unlabelled" in repr(d)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        dict(images=np.zeros((2, 4, 4, 3))),
        dict(images=np.zeros((2, 4, 4), np.uint8)),
        dict(images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0]),
        dict(
            images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 2], classes=["a", "b"]
        ),
        dict(images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, -2]),
        dict(images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0.0, 1.0]),
        dict(images=np.zeros((2, 4, 4, 3), np.uint8), groups=["a"]),
        dict(
            images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1], classes=["a", "a"]
        ),
        dict(paths=["a.png"]),
        dict(),
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(BadValue):
        ImageDataset(**wrong)


def test_wrong_rows_and_sizes():
    d = blank([0, 1])
    for rows in ([2], [-3], [0.5], [[0]], [True]):
        with pytest.raises(BadValue):
            d.batch(rows)
    with pytest.raises(BadValue, match="same size"):
        d.concat(blank([0], side=4))


# ---------------------------------------------------------------- Five Styles


def counts_in_readme():
    """Counts of the identities from the README's table.

    {(style, class): (development, sealed)} and {class: …}.
    """
    table = re.findall(
        r"^\| (\w+) \|(.+)\|$",
        (FIVE / "README.md").read_text("utf-8").split("## Counts")[1],
        re.MULTILINE,
    )
    cells = {
        c: [tuple(map(int, re.findall(r"\d+", x))) or (0, 0) for x in row.split("|")]
        for c, row in table
    }
    return {(s, c): cells[c][i] for c in STYLE_CLASSES for i, s in enumerate(STYLES)}, {
        c: cells[c][5] for c in STYLE_CLASSES
    }


def test_counts_are_the_readmes():
    images, identities = counts_in_readme()
    ids = {}
    for k, part in enumerate(("development", "sealed")):
        d = styles(part=part)
        for s in STYLES:
            counts = d.subset(d.domains == s).counts()
            assert list(counts.values()) == [images[s, c][k] for c in STYLE_CLASSES]
        ids[part] = set(d.groups)
        by_class = Counter(i.split("/")[0] for i in ids[part])
        assert [by_class[c] for c in STYLE_CLASSES] == [
            identities[c][k] for c in STYLE_CLASSES
        ]
        assert all(
            g.split("/")[0] == STYLE_CLASSES[y] for g, y in zip(d.groups, d.labels)
        )
    assert not ids["development"] & ids["sealed"]
    assert 0.3 < len(ids["sealed"]) / len(ids["sealed"] | ids["development"]) < 0.36


def test_every_class_has_both_parts_in_every_style():
    images, _ = counts_in_readme()
    assert all(all(n) or not any(n) for n in images.values())
    assert sum(any(images["photo", c]) for c in STYLE_CLASSES) == 10


def test_identities_table_says_the_same(whole):
    d = whole
    with open(FIVE / "identities.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["identity"] for r in rows} == set(d.groups)
    emoji = {(r["identity"], n) for r in rows for n in r["emoji"].split("; ") if n}
    drawn = d.subset(d.domains != "photo")
    assert emoji == set(zip(drawn.groups, drawn.names))
    sealed = {r["identity"] for r in rows if r["part"] == "sealed"}
    assert sealed == set(styles(part="sealed").groups)


def test_an_emoji_is_one_thing_in_four_styles(whole):
    a, *others = (whole.subset(whole.domains == s) for s in STYLES[1:])
    for b in others:
        assert (
            a.names.tolist() == b.names.tolist()
            and a.groups.tolist() == b.groups.tolist()
        )
        assert (a.labels == b.labels).all()


def test_near_duplicates_share_an_identity(whole):
    d = whole
    of = {(g.split("/")[0], n): g for g, n in zip(d.groups, d.names)}
    for c, names in {
        "face": [
            "grinning face",
            "grinning face with big eyes",
            "grinning face with smiling eyes",
        ],
        "mammal": ["tiger", "tiger face", "sumatran tiger"],
        "produce": ["red apple", "green apple", "fuji apple"],
        "vehicle": ["taxi", "oncoming taxi", "police car"],
    }.items():
        assert len({of[c, n] for n in names}) == 1
    assert of["mammal", "horse"] != of["mammal", "zebra"]
    pixels = Counter((s, im.tobytes()) for s, im in zip(d.domains, d.images))
    same = {
        k: {
            g
            for s, g, im in zip(d.domains, d.groups, d.images)
            if (s, im.tobytes()) == k
        }
        for k, n in pixels.items()
        if n > 1
    }
    assert all(len(g) == 1 for g in same.values())


def test_pictures_have_alpha_and_white_ground(whole):
    d = whole
    assert (
        d.images.shape == (2642, 64, 64, 3)
        and d.alpha.shape == (2642, 64, 64)
        and d.alpha.dtype == np.uint8
    )
    assert (d.images[d.alpha == 0] == 255).all()
    covered = (d.alpha > 128).mean((1, 2))
    assert covered.min() > 0.03 and (covered < 1).all()
    assert (d.alpha.max((1, 2)) == 255).all()


@pytest.mark.parametrize("style", STYLES)
def test_pictures_are_what_the_archive_shows(style, whole):
    """Our own composing equals that of `read_image`, in the order of the index."""
    d = whole.subset(whole.domains == style)
    with zipfile.ZipFile(
        FIVE / f"{'openmoji' if style == 'outline' else style}.zip"
    ) as z:
        names = [
            r["file"]
            for r in csv.DictReader(io.StringIO(z.read("index.csv").decode()))
            if r["style"] == style
        ]
        for i in range(0, len(d), 25):
            assert (read_image(z.read(names[i])) == d.images[i]).all(), names[i]


def test_styles_by_size_and_choice():
    d = styles(["outline", "photo"], size=32)
    assert (
        d.size == 32
        and list(dict.fromkeys(d.domains)) == ["outline", "photo"]
        and d.alpha.shape[1:] == (32, 32)
    )
    assert (
        d.subset(d.domains == "photo").images
        == resize_square(styles("photo").images, 32)
    ).all()
    for wrong in (
        dict(style="phto"),
        dict(style=[]),
        dict(part="test"),
        dict(size=0),
        dict(style=["photo", 3]),
    ):
        with pytest.raises(BadValue):
            styles(**wrong)


def test_archives_unzip_to_class_folders(tmp_path):
    with zipfile.ZipFile(FIVE / "openmoji.zip") as z:
        assert {"LICENSE.txt", "index.csv"} < set(z.namelist())
        assert (
            "Attribution-ShareAlike" in z.read("LICENSE.txt").decode()
            and "OpenMoji" in z.read("LICENSE.txt").decode()
        )
        assert all(
            i.compress_type == zipfile.ZIP_STORED
            and i.date_time == (1980, 1, 1, 0, 0, 0)
            for i in z.infolist()
        )
        wanted = [
            n for n in z.namelist() if n.startswith(("outline/bug/", "outline/bird/"))
        ]
        z.extractall(tmp_path, wanted)
    d = image_folder(tmp_path / "outline", size=64)
    assert d.classes == ["bird", "bug"] and len(d) == len(wanted) and not d.skipped
    ours = styles("outline", "all").only(["bird", "bug"])
    assert {im.tobytes() for im in d.images} == {im.tobytes() for im in ours.images}


def test_licences_are_there():
    for name, text in {
        "photo": "GNU GENERAL PUBLIC LICENSE",
        "noto": "Apache License",
        "twemoji": "Attribution 4.0 International",
    }.items():
        with zipfile.ZipFile(FIVE / f"{name}.zip") as z:
            assert text in z.read("LICENSE.txt").decode()
            index = list(csv.DictReader(io.StringIO(z.read("index.csv").decode())))
            assert {r["file"] for r in index} == {
                n for n in z.namelist() if n.endswith(".webp")
            }
    assert sum(p.stat().st_size for p in FIVE.iterdir()) < 10e6


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_archive_is_one_sentence(tmp_path, monkeypatch, harm):
    (tmp_path / "five_styles").mkdir()
    shutil.copy(files.assets_folder() / "checksums.json", tmp_path)
    copy = tmp_path / "five_styles/photo.zip"
    content = bytearray((FIVE / "photo.zip").read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    if harm != "gone":
        copy.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    monkeypatch.setattr(files, "assets_folder", lambda: tmp_path)
    with pytest.raises(
        NotFound if harm == "gone" else Damaged,
        match="photo.zip is (damaged|missing).*[Rr]einstall",
    ) as e:
        styles("photo")
    assert str(e.value).count("\n") == 0


def test_checksums_are_right():
    listed = json.loads((files.assets_folder() / "checksums.json").read_text())
    for p in FIVE.iterdir():
        if p.name != "README.md":
            assert (
                listed[f"five_styles/{p.name}"]
                == hashlib.sha256(p.read_bytes()).hexdigest()
            )


# ---------------------------------------------------------------- folders


def picture(seed=0, size=(20, 14), mode="RGB"):
    rng = np.random.default_rng(seed)
    return Image.fromarray(
        rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    ).convert(mode)


@pytest.fixture
def nasty(tmp_path):
    """A folder as people have them.

    (folder, files that can be read by class, reasons by name).
    """
    root = tmp_path / "my pictures"
    for c in ("cats", "dogs", "Vögel", "zwei\nZeilen", "empty", "broken", ".cache"):
        (root / c / "inside").mkdir(parents=True)
    picture(1).save(root / "cats/plain.jpg", quality=95)
    picture(2).save(root / "cats/inside/nested.PNG")
    picture(3, mode="CMYK").save(root / "cats/print.jpg")
    picture(4).quantize(8).save(
        root / "cats/palette.gif", save_all=True, append_images=[picture(5).quantize(8)]
    )
    palette = picture(6).quantize(8)
    palette.save(root / "cats/clear.png", transparency=0)
    Image.fromarray(np.arange(280, dtype=np.uint16).reshape(14, 20) * 200).save(
        root / "dogs/deep.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = Image.new("RGB", (20, 10), "white")
    # Upper half red: on the right after the turn.
    tall.paste((255, 0, 0), (0, 0, 20, 5))
    tall.save(root / "dogs/turned.jpg", exif=exif, quality=100, subsampling=0)
    picture(7).save(root / "dogs/новое имя.webp", lossless=True)
    picture(8).save(root / "dogs/new\nline.png")
    picture(9).save(root / "Vögel/鳥.png")
    picture(10).save(root / "zwei\nZeilen/x.bmp")
    shutil.copy(root / "dogs/new\nline.png", root / "dogs/copy.png")
    shutil.copy(root / "cats/plain.jpg", root / "Vögel/not a bird.jpg")
    whole = (root / "cats/plain.jpg").read_bytes()
    (root / "cats/half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cats/letter.jpg").write_text("Dear Sir or Madam")
    (root / "cats/nothing.png").touch()
    (root / "cats/.hidden.jpg").write_bytes(whole)
    (root / ".cache/thumb.jpg").write_bytes(whole)
    (root / "cats/notes.txt").write_text("x")
    (root / "broken/a.jpg").write_bytes(whole[:40])
    picture(11).save(root / "loose.png")
    os.symlink(root, root / "dogs/round")
    os.symlink(root / "gone.png", root / "dogs/gone.png")
    return root


def test_a_nasty_folder(nasty):
    d = image_folder(nasty, size=16, progress=False)
    # Sorted by code point.
    assert d.classes == ["Vögel", "cats", "dogs", "zwei\nZeilen"]
    assert d.counts() == {"Vögel": 2, "cats": 5, "dogs": 5, "zwei\nZeilen": 1}
    assert (
        d.images.shape == (13, 16, 16, 3)
        and d.images.dtype == np.uint8
        and len(d.paths) == 13
    )
    reasons = {os.path.relpath(s.path, nasty): s.reason for s in d.skipped}
    assert len(reasons) == len(d.skipped)
    assert f"{len(reasons)} paths skipped" in repr(d)
    assert {k: v for k, v in reasons.items() if "/" not in k} == {
        ".cache": "hidden",
        "broken": "no readable image in it",
        "empty": "an empty class: no image in it",
        "loose.png": "not in a class folder",
    }
    assert (
        reasons["cats/half.jpg"] == "truncated"
        and reasons["cats/nothing.png"] == "empty file"
    )
    assert (
        reasons["cats/letter.jpg"] == "not an image"
        and reasons["cats/.hidden.jpg"] == "hidden"
    )
    assert set(reasons) - {".cache", "broken", "empty", "loose.png"} == {
        *(
            "cats/half.jpg",
            "cats/nothing.png",
            "cats/letter.jpg",
            "cats/.hidden.jpg",
            "cats/notes.txt",
        ),
        *("broken/a.jpg", "dogs/round", "dogs/gone.png"),
    }
    json.dumps(
        [s._asdict() for s in d.skipped] + d.names.tolist() + d.classes + d.warnings
    )
    lost, doubt, cropped = d.warnings
    assert "more than a quarter of the pixels of 13 of the 13" in cropped
    assert "'broken' is left out" in lost and "1 file: truncated" in lost
    assert (
        "not a bird.jpg" in doubt and "plain.jpg" in doubt and "\n" not in lost + doubt
    )
    group = dict(zip([p.name for p in d.paths], d.groups))
    assert (
        group["copy.png"] == group["new\nline.png"]
        and group["plain.jpg"] == group["not a bird.jpg"]
    )
    assert len(set(d.groups)) == 11
    turned = d.images[[p.name for p in d.paths].index("turned.jpg")]
    assert turned[:, -3:].mean((0, 1))[1] < 60 and turned[:, :3].mean((0, 1))[1] > 200
    for seed in range(4):
        train, valid, _ = d.split(0.2, 0, seed)
        assert not set(train.groups) & set(valid.groups) and set(train.labels) == {
            0,
            1,
            2,
            3,
        }


def test_lazy_and_in_memory_are_the_same(nasty, monkeypatch):
    memory = image_folder(nasty, size=16)
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    lazy = image_folder(nasty, size=16)
    assert isinstance(lazy._pixels, images._OnDisk) and lazy._pixels._kept is None
    assert (
        (lazy.images == memory.images).all()
        and lazy.digests() == memory.digests()
        and lazy.size == 16
    )
    assert (lazy.batch([3, -1]) == memory.images[[3, -1]]).all()
    both = lazy.split(0.3, 0).train.concat(lazy.split(0.3, 0).valid)
    assert isinstance(both._pixels, images._OnDisk) and sorted(
        both.digests()
    ) == sorted(memory.digests())
    assert image_folder(nasty, size=8).digests()[0] != memory.digests()[0]
    os.remove(lazy.paths[0])
    with pytest.raises(UserMistake, match="no such file"):
        lazy.batch([0])


def test_pixels_whose_sums_are_known_stay_what_they_are(nasty, monkeypatch):
    """Else features of other pixels would be kept under the old ones' sum."""
    memory = image_folder(nasty, size=16)
    for data in (memory, memory.subset([0, 1])):
        with pytest.raises(ValueError, match="read-only"):
            data.images[0] = 0
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    lazy = image_folder(nasty, size=16)
    picked = (
        memory.names.tolist().index("cats/plain.jpg")
        if "cats/plain.jpg" in memory.names
        else 0
    )
    picture(99).save(lazy.paths[picked], "PNG")
    for read in (lambda: lazy.batch([picked]), lambda: lazy.images):
        with pytest.raises(UserMistake, match="has changed since it was first read"):
            read()
    assert (image_folder(nasty, size=16).images[picked] != memory.images[picked]).any()
    own = blank([0, 1])
    own.images[0] = 7
    assert own.digests()[0] != own.digests()[1]


def test_lazy_images_are_kept_when_they_fit(tmp_path):
    paths = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    d = ImageDataset(paths=paths, size=8, labels=[0, 1, 0])
    first = d.batch([1])
    assert (
        d._pixels._kept is None
        and (d.images[1] == first[0]).all()
        and d._pixels._kept is not None
    )
    assert (d.subset([1, 2]).images == d.images[1:]).all()


def test_names_that_are_no_utf8(tmp_path):
    for folder in (b"gr\xfcn", b"rot"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + folder)
        with open(os.fsencode(tmp_path) + b"/" + folder + b"/b\xe4r.png", "wb") as f:
            picture(len(folder)).save(f, "PNG")
    d = image_folder(os.fsencode(tmp_path), size=8)
    assert d.classes == ["gr\\xfcn", "rot"] and d.names.tolist() == [
        "gr\\xfcn/b\\xe4r.png",
        "rot/b\\xe4r.png",
    ]
    json.dumps(d.names.tolist() + d.classes)
    assert d.batch([0]).shape == (1, 8, 8, 3)


def test_relative_and_linked_roots(nasty, monkeypatch):
    monkeypatch.chdir(nasty)
    assert len(image_folder(".", size=8)) == 13
    os.symlink(nasty, nasty.parent / "link")
    assert (
        image_folder(nasty.parent / "link", size=8).classes
        == image_folder(f"{nasty}/", size=8).classes
    )


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "one").mkdir()
    picture().save(tmp_path / "one/a.png")
    (tmp_path / "two").mkdir()
    with pytest.raises(BadValue, match="one usable class, 'one'"):
        image_folder(tmp_path)
    with pytest.raises(BadValue, match="no usable class"):
        image_folder(tmp_path / "two")
    with pytest.raises(NotFound, match="No such folder"):
        image_folder(tmp_path / "three")
    with pytest.raises(BadValue, match="is a file"):
        image_folder(tmp_path / "one/a.png")
    for size in (0, -3, 2.5, "64", True):
        with pytest.raises(BadValue, match="size"):
            image_folder(tmp_path, size=size)


# ---------------------------------------- splits, wrappers and near-copies in a folder


def tree(root, *paths):
    """A small picture of its own at each path."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(root / path)
    return root


@pytest.mark.parametrize(
    "classes",
    [
        ["test", "cat"],
        ["train", "bus", "tram"],
        ["valid", "invalid"],
        ["train", "station"],
        ["eval", "contest"],
        ["train", "training"],
    ],
)
def test_classes_may_be_called_like_a_split(tmp_path, classes):
    root = tree(tmp_path, *(f"{c}/{i}.png" for c in classes for i in range(2)))
    assert image_folder(root, size=16).classes == sorted(classes)


def test_one_folder_too_high_names_the_folder_to_give(tmp_path):
    for paths, give in (
        (["flowers/rose/1.png", "flowers/tulip/2.png"], "flowers"),
        (["a/b/cat/1.png", "a/b/dog/2.png"], "a/b"),
        (["train/cat/1.png", "train/dog/2.png"], "train"),
    ):
        root = tree(tmp_path / give.replace("/", "-"), *paths, "loose.png")
        with pytest.raises(BadValue, match="one usable class") as e:
            image_folder(root, size=16)
        assert str(e.value).endswith(f"Give {root}/{give}.")
        assert len(image_folder(root / give, size=16)) == 2


def test_a_class_where_none_is_needed_is_no_split():
    def of(*paths):
        return datasets.folder_classes("p", [f"p/{path}" for path in paths])

    assert of("train/cat/1.png", "test/dog/2.png", "val/loose.png", "3.png") == [
        "cat",
        "dog",
        "",
        "",
    ]
    assert of("x/cat/1.png", "x/dog/big/2.png") == ["cat", "dog"]
    assert of("cat/1.png", "cat/deep/2.png") == ["cat", "cat"] and of(
        "cat/a/1.png", "dog/a/1.png", "x.png"
    ) == ["cat", "dog", ""]
    assert of() == []


def photographs(n):
    """Different bundled photographs at 128 pixels."""
    return [
        Image.fromarray(im).resize((128, 128), Image.Resampling.BICUBIC)
        for im in styles("photo").images[:n]
    ]


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


COPIES = {
    "saved": lambda im: jpeg(im, 40),
    "smaller": lambda im: jpeg(im.resize((70, 70), Image.Resampling.BICUBIC), 85),
    "cropped": lambda im: jpeg(im.crop((3, 0, 128, 125)), 90),
    "shifted": lambda im: jpeg(
        Image.fromarray(
            np.pad(np.asarray(im), ((4, 0), (4, 0), (0, 0)), "edge")[:128, :128]
        ),
        90,
    ),
    "darker": lambda im: jpeg(im.point(lambda v: round(0.85 * v)), 90),
    "mirrored": lambda im: jpeg(im.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
}


def test_near_copies_share_a_group_and_it_is_said(tmp_path):
    originals = photographs(30)
    for i, im in enumerate(originals):
        place = tmp_path / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        im.save(place / f"{i:02}.png")
    alone = image_folder(tmp_path, size=64, progress=False)
    assert len(set(alone.groups)) == 30 and alone.warnings == []
    for k, (name, change) in enumerate(COPIES.items()):
        for i in (2 * k, 2 * k + 1):
            (tmp_path / "ab"[i % 2] / f"{i:02} {name}.jpg").write_bytes(
                change(originals[i])
            )
    data = image_folder(tmp_path, size=64, progress=False)
    of = {name[2:4]: set() for name in data.names}
    for name, group in zip(data.names, data.groups):
        of[name[2:4]].add(group)
    assert (
        all(len(groups) == 1 for groups in of.values()) and len(set(data.groups)) == 30
    )
    assert len(data.warnings) == 1 and data.warnings[0].startswith(
        "24 of 42 images look like copies of another one"
    )
    for seed in range(3):
        train, valid, _ = data.split(0.3, 0, seed)
        assert not {n[2:4] for n in train.names} & {n[2:4] for n in valid.names}
    (tmp_path / "a" / "wrong.jpg").write_bytes(COPIES["saved"](originals[13]))
    # Left and right may be two classes.
    (tmp_path / "a" / "turned round.jpg").write_bytes(COPIES["mirrored"](originals[15]))
    data = image_folder(tmp_path, size=64, progress=False)
    group = dict(zip(data.names, data.groups))
    assert (
        group["a/wrong.jpg"] == group["b/13.png"]
        and group["a/turned round.jpg"] != group["b/15.png"]
    )
    assert (
        len(data.warnings) == 2
        and "1 of them look like an image of another class" in data.warnings[1]
    )
    assert "a/wrong.jpg" in data.warnings[1] and "b/13" in data.warnings[1]


def test_what_only_looks_alike_is_not_joined():
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    digits = [
        Image.fromarray(np.uint8(d * 15.9)).resize((28, 28)).convert("RGB")
        for d in load_digits().images[:500]
    ]
    icons = [Image.fromarray(im) for im in styles("noto").images]
    scans = [
        Image.fromarray(rng.normal(250, 3, (64, 64, 3)).clip(0, 255).astype(np.uint8))
        for _ in range(50)
    ]
    colours = [
        Image.new("RGB", (64, 64), tuple(rng.integers(0, 256, 3).tolist()))
        for _ in range(50)
    ]
    gradients = [
        Image.fromarray(
            np.repeat(
                np.linspace(a, b, 64, dtype=np.uint8)[:, None, None], 64, 1
            ).repeat(3, 2)
        )
        for a, b in rng.integers(0, 256, (50, 2))
    ]
    # Blank pages under the same lamp.
    dark = sum(np.meshgrid(*[np.linspace(-1, 1, 64) ** 6] * 2))[..., None]
    pages = [
        255 - shade * dark - rng.random((64, 64, 3))
        for shade in rng.uniform(20, 30, 50)
    ]
    pages = [Image.fromarray(page.astype(np.uint8)) for page in pages]
    tinted = [Image.new("RGB", (64, 64), "white") for _ in range(4)]
    for im, colour in zip(tinted, ("red", "blue", "green", "black")):
        im.paste(colour, (20, 15, 50, 40))
    for name, pictures, most, largest in (
        ("digits", digits, 30, 4),
        ("icons", icons, 6, 2),
        ("scans", scans, 0, 1),
        ("colours", colours, 0, 1),
        ("gradients", gradients, 0, 1),
        ("pages", pages, 0, 1),
        ("tinted", tinted, 0, 1),
    ):
        sizes = np.bincount(
            near_copies(
                np.stack(
                    [thumbnail(resize_square(np.asarray(im), 64)) for im in pictures]
                ),
                np.zeros(len(pictures)),
            )
        )
        assert sizes[sizes > 1].sum() <= most and sizes.max() <= largest, (
            name,
            sizes.max(),
            sizes[sizes > 1].sum(),
        )


def test_false_links_do_not_chain(monkeypatch):
    """Of three images in a row only neighbours are linked; the outer two differ."""
    from transfer_course.engine import duplicates

    found = {(0, 1): 0.97, (1, 2): 0.96, (0, 2): 0.5}
    assert duplicates._joined(
        np.zeros((3, 1152), np.uint8), None, dict(found)
    ).tolist() == [0, 0, 2]
    assert duplicates._joined(
        np.zeros((3, 1152), np.uint8), None, found | {(0, 2): 0.951}
    ).tolist() == [0, 0, 0]
    # Where the first ones were not compared yet.
    monkeypatch.setattr(duplicates, "_pair", lambda *a: 0.99)
    assert duplicates._joined(
        np.zeros((3, 1152), np.uint8), None, {(0, 1): 0.97, (1, 2): 0.96}
    ).tolist() == [0, 0, 0]


def test_a_class_that_is_one_image_again_and_again(tmp_path):
    for c, im in zip("ab", photographs(2)):
        (tmp_path / c).mkdir()
        for quality in (60, 70, 80, 90):
            (tmp_path / c / f"{quality}.jpg").write_bytes(jpeg(im, quality))
    data = image_folder(tmp_path, size=64, progress=False)
    assert len(set(data.groups)) == 2 and [len(p) for p in data.split(0.2, 0)] == [
        8,
        0,
        0,
    ]


# ---------------------------------------------------------------- data sets by name


def test_offline_is_one_sentence(tmp_path, monkeypatch):
    def down(*a, **k):
        raise urllib.error.URLError(OSError(-3, "Temporary failure in name resolution"))

    for name, error in {
        "pathmnist": "_medmnist",
        "cifar10": "_torchvision",
        "oxford_iiit_pet": "_torchvision",
    }.items():
        monkeypatch.setattr(datasets, error, down)
        with pytest.raises(Offline, match=rf"'{name}'.*styles\(\)") as e:
            named_dataset(name, tmp_path)
        assert "\n" not in str(e.value)


def test_wrong_names_and_places(tmp_path, monkeypatch):
    with pytest.raises(BadValue, match="Did you mean 'flowers102'"):
        named_dataset("flowers10", tmp_path)
    with pytest.raises(BadValue, match="part"):
        named_dataset("cifar10", tmp_path, part="all")
    (tmp_path / "file").touch()
    with pytest.raises(UserMistake, match="written"):
        named_dataset("cifar10", tmp_path / "file")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "_medmnist", full)
    with pytest.raises(UserMistake, match="full"):
        named_dataset("pathmnist", tmp_path)


def test_medmnist_from_a_file_that_is_there(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 5), ("test", 3)):
        parts[f"{part}_images"] = rng.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        parts[f"{part}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez(tmp_path / "pneumoniamnist.npz", **parts)
    md5 = hashlib.md5((tmp_path / "pneumoniamnist.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(datasets._MEDMNIST, "pneumoniamnist", (md5, "normal|pneumonia"))
    d = named_dataset("pneumoniamnist", tmp_path, part="test")
    assert (
        d.images.shape == (3, 28, 28, 3)
        and d.labels.tolist() == [0, 1, 0]
        and d.classes == ["normal", "pneumonia"]
    )
    assert named_dataset("pneumoniamnist", tmp_path, size=32).size == 32


def test_torchvision_sets_from_files_that_are_there(tmp_path, monkeypatch):
    """The real torchvision classes read tiny files in the published formats.

    Only the checksums are waved through.
    """
    torchvision = pytest.importorskip("torchvision")
    sets = torchvision.datasets
    monkeypatch.setattr(sets.cifar, "check_integrity", lambda *a: True)
    monkeypatch.setattr(sets.flowers102, "check_integrity", lambda *a: True)

    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 4), ("t10k", 2)):
        head = np.array([n, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + head + bytes(range(n)) * 784
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + np.array([n], ">i4").tobytes() + bytes(range(n))
        )
    d = named_dataset("fashion_mnist", tmp_path)
    assert (
        d.images.shape == (4, 28, 28, 3)
        and d.labels.tolist() == [0, 1, 2, 3]
        and d.classes[0] == "T-shirt/top"
    )
    assert len(named_dataset("fashion_mnist", tmp_path, "test", size=32)) == 2

    cifar = tmp_path / "cifar-10-batches-py"
    cifar.mkdir()
    red = np.repeat(np.array([[200, 0, 10]], np.uint8), 1024, axis=1).repeat(2, axis=0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (cifar / name).write_bytes(pickle.dumps({"data": red, "labels": [0, 9]}))
    (cifar / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"c{i}" for i in range(10)]})
    )
    d = named_dataset("cifar10", tmp_path)
    assert (
        len(d) == 10
        and d.images[0, 5, 5].tolist() == [200, 0, 10]
        and d.classes[9] == "c9"
        and d.size == 32
    )

    pets = tmp_path / "oxford-iiit-pet"
    (pets / "images").mkdir(parents=True)
    (pets / "annotations").mkdir()
    rows = [("Abyssinian_1", 1, 1), ("great_dane_7", 2, 2), ("Abyssinian_2", 1, 1)]
    (pets / "annotations/trainval.txt").write_text(
        "".join(f"{n} {c} {s} 1\n" for n, c, s in rows)
    )
    for i, (n, _, _) in enumerate(rows):
        picture(i).save(pets / f"images/{n}.jpg")
    d = named_dataset("oxford_iiit_pet", tmp_path)
    assert (
        d.classes == ["Abyssinian", "Great Dane"]
        and d.labels.tolist() == [0, 1, 0]
        and d.images.shape == (3, 224, 224, 3)
    )
    d = named_dataset("cats_vs_dogs", tmp_path, size=32)
    assert (
        d.classes == ["Cat", "Dog"]
        and d.labels.tolist() == [0, 1, 0]
        and d.names.tolist()[1] == "great dane"
        and d.size == 32
    )

    from scipy.io import savemat

    (tmp_path / "flowers-102/jpg").mkdir(parents=True)
    for i in range(1, 6):
        picture(i).save(tmp_path / f"flowers-102/jpg/image_{i:05d}.jpg")
    savemat(
        tmp_path / "flowers-102/imagelabels.mat",
        {"labels": np.array([1, 102, 3, 3, 1])},
    )
    savemat(
        tmp_path / "flowers-102/setid.mat",
        {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 4]},
    )
    d = named_dataset("flowers102", tmp_path, size=16)
    assert (
        d.labels.tolist() == [0, 101, 2, 2]
        and len(d.classes) == 102
        and d.images.shape == (4, 16, 16, 3)
    )
    assert named_dataset("flowers102", tmp_path, "test").labels.tolist() == [0, 2]


# ---------------------------------------------------------------- augmentation


def test_params_are_one_draw_an_epoch():
    p = augment_params(50, 3, 1)
    assert (
        p.shape == (50, len(AUGMENTATIONS))
        and p.dtype == np.float32
        and p.min() >= 0
        and p.max() < 1
    )
    assert (p == augment_params(50, 3, 1)).all() and (
        p[:20] == augment_params(20, 3, 1)
    ).all()
    for other in (
        augment_params(50, 3, 2),
        augment_params(50, 4, 1),
        augment_params(50, [3, 1], 1),
    ):
        assert not (p == other).any(axis=0).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_augment_keeps_shape_and_type(n, h, w, strength, seed):
    x = np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)
    p = augment_params(n, seed, 0)
    before = x.copy()
    y = augment(x, p, strength)
    assert y.shape == x.shape and y.dtype == np.uint8 and (x == before).all()
    assert (y == augment(x, p, strength)).all()
    one_by_one = np.concatenate(
        [augment(x[i : i + 1], p[i : i + 1], strength) for i in range(n)]
    )
    assert (y == one_by_one).all()
    assert (augment(x, np.full_like(p, 0.5), strength) == x).all() and (
        augment(x, p, 0) == x
    ).all()


def test_augment_does_what_it_says():
    x = np.full((1, 50, 50, 3), 255, np.uint8)
    x[0, 20:30, 10:20] = (200, 50, 50)

    def mid(y):
        return np.argwhere(y[0, ..., 1] < 150).mean(0)

    def change(**k):
        return augment(x, [[k.get(a, 0.5) for a in AUGMENTATIONS]])

    assert (change(flip=0.9) == x[:, :, ::-1]).all()
    # 12 % of 50 pixels.
    assert np.allclose(mid(change(right=1, down=0)), mid(x) + [-6, 6], atol=0.5)
    assert (change(zoom=1)[..., 1] < 150).sum() > 120 and (
        change(zoom=0)[..., 1] < 150
    ).sum() < 85
    # What comes in is white, as the border is.
    assert (change(right=1)[0, :, :5] == 255).all()
    assert (
        change(brightness=0).mean() < x.mean()
        and np.ptp(change(saturation=0)[0, 25, 15]) < 150 * 0.7
    )
    assert np.ptp(change(contrast=0).astype(int)[..., 1]) < np.ptp(
        x.astype(int)[..., 1]
    )
    with pytest.raises(BadValue):
        augment(x, np.zeros((2, 7)))
    with pytest.raises(BadValue):
        augment(x, np.zeros((1, 7)), strength=1.5)


# ---------------------------------------------------------------- the rest


def test_importing_is_light():
    heavy = ("torch", "sklearn", "matplotlib", "pooch", "tensorflow")
    code = (
        "import sys, transfer_course.vision.data; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_images_are_not_shared_between_calls():
    a = styles("photo")
    a.images[:] = 0
    assert styles("photo").images.max() == 255
