"""vision.photos.

The page tells the truth, sealed stays sealed, licences are complete, and backgrounds
don't tell the class.
"""

import csv
import io
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from transfer_course.engine import files
from transfer_course.engine.errors import BadValue, NotFound
from transfer_course.practice import photo_budget
from transfer_course.trainer.recipe import Recipe
from transfer_course.vision import photos as module
from transfer_course.vision.photos import PHOTO_CLASSES, PHOTO_DOMAINS, photos

FOLDER = files.assets_folder() / "everyday_photos"
ARCHIVES = ["tuxpaint", "gcompris_public_domain", "gcompris_cc_by_sa"]
LICENCES = {
    "tuxpaint": {"GPL-2"},
    "gcompris_public_domain": {"public domain", "CC0-1.0"},
    "gcompris_cc_by_sa": {"CC-BY-SA-4.0"},
}


@pytest.fixture(scope="module")
def whole():
    """All photographs at a small size; a test must not change them."""
    return photos(part="all", size=64)


@pytest.fixture(scope="module")
def parts():
    """Development and sealed, very small."""
    return {p: photos(part=p, size=16) for p in ("development", "sealed")}


@pytest.fixture(scope="module")
def five_styles():
    """Identity -> part and the names of its photographs, of Five Styles."""
    with open(
        files.assets_folder() / "five_styles/identities.csv",
        encoding="utf-8",
        newline="",
    ) as file:
        return {
            r["identity"]: (r["part"], r["photographs"].split("; "))
            for r in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def composed():
    return photos(part="all", domain="cutout", size=64, background="scene")


@pytest.fixture(scope="module")
def index():
    """Archive -> its rows."""
    found = {}
    for name in ARCHIVES:
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as z:
            found[name] = list(
                csv.DictReader(io.StringIO(z.read("index.csv").decode()))
            )
    return found


# ---------------------------------------- the page, the parts, the pictures


def test_counts_are_those_of_the_page(whole, parts):
    page = (FOLDER / "README.md").read_text("utf-8")
    for name in PHOTO_CLASSES:
        cells = re.search(rf"^\| {name} \|(.*)\|$", page, re.M)[1].split("|")
        for domain, cell in zip(PHOTO_DOMAINS, cells, strict=False):
            said = [int(n) for n in re.findall(r"\d+", cell)] or [0, 0]
            label = PHOTO_CLASSES.index(name)
            assert said == [
                int(((d.labels == label) & (d.domains == domain)).sum())
                for d in parts.values()
            ]
    assert f"{len(whole)} images, {len(set(whole.groups))} identities" in page
    assert len(whole) >= 450 and len(PHOTO_CLASSES) >= 11
    assert len(whole) == sum(map(len, parts.values()))


def test_an_identity_has_one_part_and_one_class(parts):
    development, sealed = parts.values()
    assert not set(development.groups) & set(sealed.groups)
    both = development.concat(sealed)
    assert len(set(zip(both.groups, both.labels, strict=True))) == len(set(both.groups))


def test_every_class_and_domain_has_both_parts(whole, parts):
    for pair in set(zip(whole.labels, whole.domains, strict=True)):
        for data in parts.values():
            assert pair in set(zip(data.labels, data.domains, strict=True))


def test_sealed_here_is_sealed_in_five_styles(parts, five_styles):
    """An identity that both data sets have is in the same part of both."""
    for part, data in parts.items():
        shared = set(data.groups) & set(five_styles)
        assert len(shared) > 50 and {five_styles[g][0] for g in shared} == {part}


def test_the_same_thing_has_the_same_name_as_in_five_styles(index, whole, five_styles):
    """Every cut-out that Five Styles has too carries its identity.

    So does the jaguar, which is a tiger there.
    """
    theirs = {
        name: identity
        for identity, (_, names) in five_styles.items()
        for name in names
        if name
    }
    mine = {
        r["file"].split("/")[-1].removesuffix(".webp"): r["identity"]
        for r in index["tuxpaint"]
    }
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 180
    # the second picture of a name has a number, which may be another's in the other
    # data set
    assert all(mine[n] == theirs[n] for n in shared)
    assert {
        g for n, g in zip(whole.names, whole.groups, strict=True) if n == "jaguar"
    } == {"mammal/tiger"}


def test_stored_pictures_are_small_webp(index):
    for name, rows in index.items():
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as z:
            for row in rows:
                with Image.open(io.BytesIO(z.read(row["file"]))) as image:
                    assert image.format == "WEBP"
                    side = (
                        min(image.size)
                        if row["domain"] == "background"
                        else max(image.size)
                    )
                    assert side <= (160 if row["domain"] == "background" else 192)
                    assert (image.mode == "RGBA") == (row["domain"] == "cutout")
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 12e6


def test_each_picture_has_author_licence_and_source(index):
    page = (FOLDER / "README.md").read_text("utf-8")
    for name, rows in index.items():
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as z:
            assert {r["file"] for r in rows} == set(z.namelist()) - {
                "index.csv",
                "LICENSE.txt",
            }
            assert len(z.read("LICENSE.txt")) > 5000
        for row in rows:
            assert (
                row["author"]
                and row["licence"] in LICENCES[name]
                and row["source"].startswith("https://")
            )
            if name != "tuxpaint":
                credit = [
                    row["file"],
                    row["author"],
                    row["licence"],
                    f"<{row['source']}>",
                ]
                assert f"| {' | '.join(credit)} |" in page


def test_identities_csv_is_the_index(index):
    with open(FOLDER / "identities.csv", encoding="utf-8", newline="") as file:
        table = {r["identity"]: r["part"] for r in csv.DictReader(file)}
    rows = [r for rows in index.values() for r in rows if r["class"]]
    assert table == {r["identity"]: r["part"] for r in rows}


# ---------------------------------------------------------------- loading


def test_what_comes_back(whole):
    assert whole.images.shape == (len(whole), 64, 64, 3) and whole.alpha.shape == (
        len(whole),
        64,
        64,
    )
    assert set(whole.domains) == set(PHOTO_DOMAINS) and not whole.warnings
    scene = whole.domains == "scene"
    assert (whole.alpha[scene] == 255).all() and (whole.alpha[~scene] == 0).any(
        (1, 2)
    ).all()
    assert (whole.images[~scene][whole.alpha[~scene] == 0] == 255).all()  # white
    assert set(photos(domain="scene", size=16).domains) == {"scene"}


def test_cut_outs_are_whole_and_leave_a_margin(whole):
    alpha = whole.alpha[whole.domains == "cutout"]
    assert (
        not alpha[:, :3].any()
        and not alpha[:, -3:].any()
        and not alpha[:, :, :3].any()
        and not alpha[:, :, -3:].any()
    )
    rows, columns = (alpha > 16).any(2).sum(1), (alpha > 16).any(1).sum(1)
    # 90 % of 64 pixels, but for soft edges.
    assert (np.maximum(rows, columns) >= 54).all()


@pytest.mark.parametrize("missing", ARCHIVES)
def test_works_without_any_one_archive(monkeypatch, whole, missing, index):
    real = module.asset

    def asset(name):
        if missing in name:
            raise NotFound(f"{name} is missing.")
        return real(name)

    monkeypatch.setattr(module, "asset", asset)
    fewer = photos("all", size=64)
    assert len(fewer) == len(whole) - sum(bool(r["class"]) for r in index[missing])
    assert len(fewer.warnings) == 1 and missing in fewer.warnings[0]
    if missing == "gcompris_public_domain":  # holds the backgrounds
        with pytest.raises(NotFound, match="no backgrounds.*gcompris_public_domain"):
            photos(background="scene")
    if missing == "tuxpaint":
        with pytest.raises(NotFound, match="No photographs are left.*tuxpaint"):
            photos(domain="cutout")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"part": "test"},
            "part is 'test'; expected one of 'development', 'sealed', 'all'",
        ),
        ({"domain": "cutouts"}, "Did you mean 'cutout'"),
        ({"background": "scenes"}, "Did you mean 'scene'"),
        ({"background": 255}, "background is 255"),
        ({"size": 0}, "size is 0"),
        ({"size": 2.5}, "size is 2.5"),
        ({"domain": ["scene"]}, "domain is"),
    ],
)
def test_bad_arguments(wrong, says):
    with pytest.raises(BadValue, match=re.escape(says)):
        photos(**wrong)


# ---------------------------------------------------------------- backgrounds


def test_composition_is_the_same_each_time_and_by_identity(whole, composed):
    again = photos(part="all", domain="cutout", size=64, background="scene")
    assert (
        np.array_equal(again.images, composed.images)
        and composed.digests() == again.digests()
    )
    pool = module._pool(module._everything()[0], [])
    for i in (0, 100, 200):
        clear = composed.alpha[i] == 0
        assert np.array_equal(
            composed.images[i][clear],
            module._backdrop(composed.groups[i], pool, 64)[clear],
        )


def test_only_the_background_changes(whole, composed):
    white = whole.subset(whole.domains == "cutout")
    solid = white.alpha == 255
    assert np.array_equal(composed.images[solid], white.images[solid])
    assert np.array_equal(composed.alpha, white.alpha) and list(composed.names) == list(
        white.names
    )
    clear = white.alpha == 0
    assert (composed.images[clear] != 255).any(-1).mean() > 0.9
    both = photos("all", "scene", 64, "scene"), photos("all", "scene", 64, "white")
    assert np.array_equal(both[0].images, both[1].images)


def border_accuracy(images, labels, groups):
    """How often a forest that sees the outermost three pixels alone is right.

    It is asked about unseen identities.
    """
    turned = images.swapaxes(1, 2)
    edges = (images[:, :3], images[:, -3:], turned[:, :3], turned[:, -3:])
    inputs = np.concatenate(
        [e.reshape(len(images), 3, 16, 4, 3).mean((1, 3)) for e in edges], axis=1
    ).reshape(len(images), -1)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    forest = RandomForestClassifier(50, random_state=0)
    return (
        cross_val_predict(forest, inputs, labels, groups=groups, cv=folds) == labels
    ).mean()


def test_the_border_does_not_tell_the_class_of_a_composed_cut_out(composed):
    majority = np.bincount(composed.labels).max() / len(composed)
    assert (
        border_accuracy(composed.images, composed.labels, composed.groups)
        < majority + 0.05
    )


def test_that_test_would_notice_a_background_by_class(composed):
    pool = module._pool(module._everything()[0], [])
    leaky = np.stack(
        [module._backdrop(PHOTO_CLASSES[y], pool, 64) for y in composed.labels]
    )
    assert border_accuracy(leaky, composed.labels, composed.groups) > 0.9


def test_backgrounds_show_no_class_and_are_not_sealed(index, parts):
    rows = [r for rows in index.values() for r in rows]
    backgrounds = [r["original"] for r in rows if r["domain"] == "background"]
    assert len(backgrounds) >= 20 and not any(
        r["class"] for r in rows if r["domain"] == "background"
    )
    assert not set(backgrounds) & {r["original"] for r in rows if r["part"] == "sealed"}
    used = Counter(
        int(np.frombuffer(_digest(g), ">u4")[0] / 2**32 * len(backgrounds))
        for g in set(parts["development"].groups)
    )
    # 209 identities over 24.
    assert len(used) == len(backgrounds) and max(used.values()) < 25


def _digest(identity):
    import hashlib

    return hashlib.sha256(f"background: {identity}".encode()).digest()


# ---------------------------------------------------------------- the study


def test_the_record_of_the_study_is_complete(parts):
    runs, about = photo_budget.load_photo_budget()
    wanted = [
        (method, seed) for method, seeds in photo_budget.SEEDS.items() for seed in seeds
    ]
    assert sorted((r.method, r.seed) for r in runs) == sorted(wanted)
    assert {len(r.correct) for r in runs} == {len(parts["development"])}
    assert (about["size"], about["labels"], about["folds"]) == (
        photo_budget.SIZE,
        photo_budget.LABELS,
        photo_budget.FOLDS,
    )
    assert {
        name: (size, Recipe(**r)) for name, (size, r) in about["scratch"].items()
    } == photo_budget.SCRATCH
    assert all(
        set(r.chosen) <= set(photo_budget.SCRATCH)
        for r in runs
        if r.method == "scratch"
    )
    for method in photo_budget.SEEDS:
        assert not np.isnan(photo_budget.table(runs, method)).any()


@pytest.mark.parametrize("seed", range(20))
def test_folds_keep_identities_apart_and_test_each_image_once(parts, seed):
    data = parts["development"]
    dealt = photo_budget.folds(data, seed)
    assert sorted(np.concatenate([f.test for f in dealt])) == list(range(len(data)))
    for fold in dealt:
        labelled, valid, test = ({*data.groups[rows]} for rows in fold)
        assert not labelled & valid and not labelled & test and not valid & test
        counts = np.bincount(data.labels[fold.labelled], minlength=len(data.classes))
        assert (counts == photo_budget.LABELS).all()


# ---------------------------------------- the script that built it


def rcc(entries):
    """A Qt resource file (format 2) with one folder `a`.

    The folder holds these (name, bytes, compressed).
    """
    names, content, nodes = b"", b"", []

    def name(text):
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes.append(struct.pack(">IHII", 0, 2, 1, 1) + bytes(8))
    nodes.append(struct.pack(">IHII", name("a"), 2, len(entries), 2) + bytes(8))
    for text, data, packed in entries:
        body = struct.pack(">I", len(data)) + zlib.compress(data) if packed else data
        nodes.append(
            struct.pack(">IHHHI", name(text), int(packed), 0, 0, len(content))
            + bytes(8)
        )
        content += struct.pack(">I", len(body)) + body
    tree = b"".join(nodes)
    at = 20
    return (
        struct.pack(
            ">4s4I", b"qres", 2, at, at + len(tree), at + len(tree) + len(content)
        )
        + tree
        + content
        + names
    )


def test_the_reader_of_qt_resources(monkeypatch):
    tools = Path(__file__).resolve().parent.parent / "tools"
    monkeypatch.setattr(sys, "path", [str(tools), *sys.path])
    import build_photos

    entries = [("é.txt", b"plain", False), ("z.txt", b"zipped" * 9, True)]
    assert build_photos.read_rcc(rcc(entries)) == {
        "a/é.txt": b"plain",
        "a/z.txt": b"zipped" * 9,
    }
    with pytest.raises(AssertionError):
        build_photos.read_rcc(b"nope" + rcc(entries)[4:])
    text = (
        "Copyright: A\n"
        "Source: https://x.org/1\n"
        "License: Public Domain\n"
        "Files:\n"
        "one.webp\n"
        "two.webp\n"
    )
    found = build_photos.credits({"f/README": text.encode()})
    assert found["f/two"] == {
        "author": "A",
        "licence": "public domain",
        "source": "https://x.org/1",
    }
