"""vision.glyphs.

What the page says is in the archives, families and forms are apart, every glyph is
centred.
"""

import csv
import importlib.util
import io
import re
import zipfile
from difflib import SequenceMatcher

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from transfer_course.engine.errors import BadValue
from transfer_course.engine.files import assets_folder
from transfer_course.vision import glyphs as module
from transfer_course.vision.glyphs import (
    DIGITS,
    GLYPH_DOMAINS,
    LETTERS,
    centred,
    families,
    glyphs,
    handwriting,
)

FOLDER = assets_folder() / "glyphs"
ARCHIVES = ("ofl", "apache", "gpl", "permissive")


@pytest.fixture(scope="module")
def letters():
    """All letters of both parts; a test must not change them."""
    return glyphs(part="all")


@pytest.fixture(scope="module")
def digits():
    return glyphs("digits", "all")


@pytest.fixture(scope="module")
def by_hand():
    return handwriting("all")


@pytest.fixture(scope="module")
def index():
    """(archive, row) of every font."""
    rows = []
    for archive in ARCHIVES:
        with zipfile.ZipFile(FOLDER / f"{archive}.zip") as z:
            rows += [
                (archive, r)
                for r in csv.DictReader(io.StringIO(z.read("index.csv").decode()))
            ]
    return rows


def builder():
    """tools/build_glyphs.py as a module, where this is a checkout."""
    path = assets_folder().parent.parent / "tools" / "build_glyphs.py"
    if not path.exists():
        pytest.skip("an installed package has no tools")
    spec = importlib.util.spec_from_file_location("build_glyphs", path)
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    return built


# ---------------------------------------- the page and the archives


def test_counts_match_the_page(index):
    page = (FOLDER / "README.md").read_text("utf-8")
    fonts, n_families, packages = map(
        int,
        re.search(
            r"(\d+) font files of (\d+) families in (\d+) packages", page
        ).groups(),
    )
    assert fonts == len(index) >= 250
    assert n_families == len({r["family"] for _, r in index}) and packages == len(
        {r["package"] for _, r in index}
    )
    for domain in GLYPH_DOMAINS:
        said = re.search(
            rf"^\| {domain} \| (\d+) \+ (\d+) \| (\d+) \+ (\d+) \|$", page, re.M
        )
        here = [
            [r for _, r in index if r["domain"] == domain and r["part"] == part]
            for part in ("development", "sealed")
        ]
        assert [int(v) for v in said.groups()] == [
            *map(len, here),
            *(len({r["family"] for r in rows}) for rows in here),
        ]
    assert f"Letters: {' '.join(LETTERS)}." in page


def test_every_font_has_its_licence_and_credit(index):
    page = (FOLDER / "README.md").read_text("utf-8")
    built = builder()
    for archive, r in index:
        assert all(
            r[column] for column in ("licence", "package", "version", "credit")
        ), r
        assert built.ARCHIVE_OF[r["licence"]] == archive
        line = (
            f"| {r['font']} | {r['domain']} | {r['licence']} | {r['package']} | "
            f"{r['version']} | {r['credit'].replace('|', '/')} |"
        )
        assert line in page
    for archive in ARCHIVES:
        with zipfile.ZipFile(FOLDER / f"{archive}.zip") as z:
            names, mine = set(z.namelist()), [r for a, r in index if a == archive]
            assert {f"copyright/{r['package']}.txt" for r in mine} | {
                r["file"] for r in mine
            } <= names
            assert len(names) == len(mine) + len({r["package"] for r in mine}) + 2
            licence = z.read("LICENSE.txt").decode()
            for text in built.ARCHIVES[archive][2]:
                assert (built.ROOT / "tools/licences" / f"{text}.txt").read_text(
                    "utf-8"
                ) in licence
            for r in mine:
                built.prove(
                    r["package"],
                    r["licence"],
                    z.read(f"copyright/{r['package']}.txt").decode(),
                )


def test_the_files_are_small():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 6e6


def test_no_two_fonts_are_the_same_pixels_but_in_one_family(letters):
    pixels = letters.images[..., 0].reshape(-1, len(LETTERS) * 28 * 28)
    family = families(letters)[:: len(LETTERS)]
    seen = {}
    for row, name in zip(pixels, family, strict=True):
        assert seen.setdefault(row.tobytes(), name) == name


# ---------------------------------------------------------------- images


def test_shapes_and_labels(letters, digits):
    for data, classes in ((letters, LETTERS), (digits, DIGITS)):
        assert (
            data.images.shape == (len(data), 28, 28, 3)
            and data.images.dtype == np.uint8
        )
        assert data.classes == list(classes) and len(set(data.counts().values())) == 1
        assert all(
            name.endswith(" " + data.classes[y])
            for name, y in zip(data.names, data.labels, strict=True)
        )
        assert all(
            group.endswith("/" + data.classes[y])
            for group, y in zip(data.groups, data.labels, strict=True)
        )
    assert len(letters) / 39 == len(digits) / 10


def test_a_letter_looks_like_itself(letters):
    """The order of the classes is right.

    The mean of each class in one half of the families names most letters of the other
    half.
    """
    z = letters.images[..., 0].reshape(len(letters), -1).astype(float)
    half = np.isin(families(letters), np.unique(families(letters))[::2])
    means = np.stack([z[half & (letters.labels == c)].mean(0) for c in range(39)])
    distance = (means**2).sum(1) - 2 * z[~half] @ means.T
    assert (distance.argmin(1) == letters.labels[~half]).mean() > 0.7


def test_glyphs_stand_upright(letters, by_hand):
    """An L has its ink on the left and below, a 7 above: not mirrored, not turned."""
    ell = (
        letters.images[letters.labels == LETTERS.index("L"), ..., 0]
        .astype(float)
        .mean(0)
    )
    rows = np.flatnonzero(ell.sum(1) > ell.sum(1).max() / 4)
    columns = np.flatnonzero(ell.sum(0) > ell.sum(0).max() / 4)
    assert (
        ell[:, columns[:3]].sum() > ell[:, columns[-3:]].sum()
        and ell[rows[-3:]].sum() > 1.5 * ell[rows[:3]].sum()
    )
    seven = by_hand.images[by_hand.labels == 7, ..., 0].astype(float).mean(0)
    assert seven[5:10].sum() > 1.2 * seven[18:23].sum()


@pytest.mark.parametrize("which", ["letters", "digits", "by_hand"])
def test_every_glyph_is_centred_as_in_mnist(which, request):
    grey = request.getfixturevalue(which).images[..., 0].astype(np.float32)
    at, mass = np.arange(28, dtype=np.float32) - 13.5, grey.sum((1, 2))
    centre = np.stack([grey.sum(2) @ at, grey.sum(1) @ at], 1) / mass[:, None]
    assert (np.abs(centre).max(1) > 0.501).mean() < 0.001 and np.abs(centre).max() < 1
    ink = grey > 0
    sides = np.stack(
        [
            28 - some.argmax(1) - some[:, ::-1].argmax(1)
            for some in (ink.any(1), ink.any(2))
        ],
        1,
    )
    # An edge fainter than one grey level is lost.
    assert sides.max() == 20 and (sides.max(1) >= 19).all()
    assert grey.max((1, 2)).min() > 100  # nothing is too thin to be seen


def test_centred_keeps_the_aspect_ratio_and_finds_the_middle():
    image = Image.new("L", (60, 120))
    ImageDraw.Draw(image).rectangle((0, 60, 59, 119), fill=255)  # the lower half
    ImageDraw.Draw(image).line((30, 0, 30, 60), fill=255, width=12)
    out = centred(image)
    y, x = np.nonzero(out)
    assert np.ptp(y) + 1 == 20 and np.ptp(x) + 1 == 10
    assert abs((out.sum(1) @ np.arange(28)) / out.sum() - 13.5) <= 0.5 and y.max() < 27


def test_loading_twice_gives_the_same():
    for load in (
        lambda: glyphs("digits", domain="script", part="sealed"),
        lambda: handwriting("sealed"),
    ):
        a, b = load(), load()
        assert (
            (a.images == b.images).all()
            and (a.names == b.names).all()
            and (a.groups == b.groups).all()
        )


# ---------------------------------------------------------------- parts


def test_parts_are_apart_by_family(letters, digits, index):
    # All characters of a family go together.
    development, sealed = glyphs(), glyphs("digits", "sealed")
    assert not set(families(development)) & set(families(sealed))
    assert (
        set(families(development)) | set(families(sealed))
        == set(families(letters))
        == set(families(digits))
    )
    assert 0.2 < len(set(families(sealed))) / len(set(families(letters))) < 0.3
    assert set(development.domains) == set(sealed.domains) == set(GLYPH_DOMAINS)
    assert len(development) / 39 + len(sealed) / 10 == len(index)


def test_the_table_of_families_is_what_the_archives_hold(index):
    rows = list(
        csv.DictReader(io.StringIO((FOLDER / "families.csv").read_text("utf-8")))
    )
    assert {r["family"]: r["part"] for r in rows} == {
        r["family"]: r["part"] for _, r in index
    }
    assert sum(int(r["fonts"]) for r in rows) == len(index)


def test_weights_of_a_family_never_part(letters):
    parts = letters.split(seed=3)
    assert len(parts.train) and len(parts.test)
    a, b = (
        {
            n.removesuffix(" " + n[-1]).removesuffix(" bold").removesuffix(" italic")
            + n[-1]
            for n in p.names
        }
        for p in (parts.train, parts.test)
    )
    assert not a & b


def test_forms_of_the_handwriting(by_hand):
    """The sequence of labels starts again where the library says that a form begins."""
    labels = "".join(map(str, load_digits().target))
    for start, end in zip(
        module._FORMS, [*module._FORMS[1:], len(labels)], strict=True
    ):
        assert (
            SequenceMatcher(
                None, labels[:130], labels[start:end], autojunk=False
            ).ratio()
            > 0.95
        )
    development, sealed = handwriting(), handwriting("sealed")
    assert len(development) == 1287 and len(sealed) == 510
    assert len(set(development.groups)) == 10 and not set(development.groups) & set(
        sealed.groups
    )
    assert (by_hand.labels == load_digits().target).all()
    assert (by_hand.images[:1287] == development.images).all() and (
        by_hand.images[1287:] == sealed.images
    ).all()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: glyphs("leters"), "kind is 'leters'.*Did you mean 'letters'"),
        (
            lambda: glyphs(part="test"),
            "part is 'test'; expected one of 'development', 'sealed', 'all'",
        ),
        (
            lambda: glyphs(domain="sanserif"),
            "domain is 'sanserif'.*Did you mean 'serif'",
        ),
        (lambda: glyphs(domain=["mono", "scrpt"]), "Did you mean 'script'"),
        (lambda: glyphs(domain=[]), r"domain is \[\]; expected one or more"),
        (lambda: glyphs(kind=None), "kind is None"),
        (lambda: handwriting("devlopment"), "Did you mean 'development'"),
    ],
)
def test_a_wrong_argument_is_said_in_a_sentence(call, words):
    with pytest.raises(BadValue, match=words):
        call()
