"""`predict --abstain` and the heat maps of the report, on folders that are made here.

Each framework trains one run as a process; the other tests look at those two runs.
"""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny import colours

from transfer_course import Recipe, cli, fine_tune
from transfer_course.engine.errors import BadValue, Damaged, NotFound
from transfer_course.practice import abstain
from transfer_course.practice.abstain import Known
from transfer_course.vision.backbones import backbone

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 200),
    "yellow": (220, 210, 40),
    "violet & pink": (200, 80, 200),
}
EACH, SIDE = 16, 64


def disc(colour, rng):
    """A disc of this colour at a random place on grey noise."""
    noise = rng.integers(90, 160, (SIDE, SIDE, 3))
    centre, radius = rng.integers(20, 44, 2), rng.integers(12, 19)
    y, x = np.mgrid[:SIDE, :SIDE]
    on = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    noise[on] = np.array(colour) + rng.integers(-25, 26, (on.sum(), 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def stripes(rng):
    """What no class shows: black and white stripes."""
    width, y = rng.integers(2, 6), np.arange(SIDE)
    rows = np.where(y // width % 2, 255, 0).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(rows[:, None, None], (SIDE, SIDE, 3)).copy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("discs") / "photos", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(EACH):
            disc(colour, rng).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("strangers"), np.random.default_rng(1)
    for i in range(6):
        stripes(rng).save(root / f"stripes{i}.png")
        disc(list(COLOURS.values())[i % 5], rng).save(root / f"known{i}.png")
    return root


def run(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "transfer_course.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=600,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """A fine-tuned network in torch, a probe in Keras, and what training printed."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for framework, strategy in (("torch", "lp_ft"), ("keras", "probe")):
        how = ["--framework", framework, "--strategy", strategy, "--size", SIDE]
        how += ["--epochs", 1, "--out", root / framework]
        done = run("fine-tune", folder, *how, "--json")
        made[framework] = root / framework, done.stderr
    return made


each = pytest.mark.parametrize("framework", ["torch", "keras"])


def here(*args, code=0, terminal=False):
    """The command in this process: what it printed to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    out.isatty = lambda: terminal
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        patch.setenv("TRANSFER_COURSE_STARTED", str(time.time()))
        cli.main([*map(str, args)])
    assert stop.value.code == code, f"{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


@each
def test_training_measures_how_well_strangers_are_noticed(framework, runs):
    at, told = runs[framework]
    about = json.loads((at / "run.json").read_text())["abstain"]
    assert 0.5 < about["low"] <= about["auroc"] <= about["high"] <= 1
    assert about["pairs"] == 10 and about["held_out"] >= 10 and about["level"] == 0.95
    assert f"AUROC {about['auroc']:.2f}" in told and "left-out" in told
    card = (at / "card.md").read_text()
    assert f"AUROC {about['auroc']:.2f} (95 % interval" in card
    assert "Without `--abstain` it always answers" in card
    rate = max(0.05, 1 / (1 + about["held_out"]))
    assert f"at most {100 * rate:.0f} %" in card


@each
def test_predict_refuses_strangers_as_a_process(framework, runs, strangers):
    """The training images are gone by then: the run's folder has all it needs."""
    at, _ = runs[framework]
    done = run("predict", at, "--abstain", strangers, "--json")
    found = {r["path"].rsplit("/", 1)[-1]: r for r in rows(done.stdout)}
    none = {name: row["none_of_these"] for name, row in found.items()}
    assert sum(v for k, v in none.items() if "stripes" in k) >= 5
    assert sum(v for k, v in none.items() if "known" in k) <= 2
    refused = found["stripes0.png"]
    assert refused["class"] is None and refused["best_guess"] in COLOURS
    assert refused["top"][0] == {
        "class": refused["best_guess"],
        "probability": refused["probability"],
    }
    assert 0 < refused["score"] <= 0.1
    for name, row in found.items():
        assert (row["class"] is None) == none[name]
        assert ("best_guess" in row) == none[name]


@each
def test_without_the_option_nothing_changes(framework, runs, strangers):
    at, _ = runs[framework]
    plain = rows(here("predict", at, strangers, "--json")[0])
    asked = rows(here("predict", at, strangers, "--abstain", "0.5", "--json")[0])
    assert all(not {"none_of_these", "score"} & set(row) for row in plain)
    for a, b in zip(plain, asked, strict=True):
        assert a["class"] == (b["class"] or b["best_guess"])
        assert abs(a["probability"] - b["probability"]) < 1e-4


def test_the_rate_is_the_share_that_may_be_refused(runs, strangers):
    at, _ = runs["torch"]
    few, many = (
        rows(here("predict", at, strangers, f"--abstain={rate}", "--json")[0])
        for rate in (0.12, 0.5)
    )
    for a, b in zip(few, many, strict=True):
        assert a["score"] == b["score"]
        assert a["none_of_these"] == (a["score"] <= 0.12)
        assert b["none_of_these"] == (b["score"] <= 0.5)


def test_people_read_none_of_these(runs, strangers):
    at, _ = runs["torch"]
    image = strangers / "stripes0.png"
    out, _ = here("predict", at, "--abstain", image, terminal=True)
    assert re.fullmatch(
        rf"{re.escape(str(image))}  none of these  \(best guess .+ [01]\.\d\d\)\n", out
    )


@pytest.mark.parametrize(
    "rate, word", [("0.01", "from 0.0"), ("0.9", "to 0.5"), ("nan", "share")]
)
def test_a_rate_that_cannot_be_kept_is_refused(runs, strangers, rate, word):
    at, _ = runs["torch"]
    out, err = here("predict", at, strangers, "--abstain", rate, code=2)
    assert word in err and "held-out images" in err and not out


def test_a_word_after_the_equals_sign_is_refused(runs, strangers):
    _, err = here("predict", runs["torch"][0], strangers, "--abstain=yes", code=2)
    assert "'yes'" in err and "0.05" in err


def test_a_run_without_it_says_how_to_get_it(runs, strangers, tmp_path):
    old = shutil.copytree(runs["torch"][0], tmp_path / "old")
    info = json.loads((old / "run.json").read_text())
    about = info.pop("abstain")
    (old / "run.json").write_text(json.dumps(info))
    _, err = here("predict", old, strangers, "--abstain", code=2)
    assert "Train it again" in err and len(err.splitlines()) == 1
    assert rows(here("predict", old, strangers, "--json")[0])[0]["class"] in COLOURS
    (old / "run.json").write_text(json.dumps(info | {"abstain": {"why": "of that."}}))
    assert "of that." in here("predict", old, strangers, "--abstain", code=2)[1]
    (old / "run.json").write_text(json.dumps(info | {"abstain": about}))
    (old / abstain.FILE).write_bytes(b"something else")
    with pytest.raises(Damaged, match="not the file"):
        abstain.load_familiar(old, {"abstain": about})
    (old / abstain.FILE).unlink()
    with pytest.raises(NotFound, match="is missing"):
        abstain.load_familiar(old, {"abstain": about})


def test_with_three_classes_it_is_not_measured_and_said_so(tmp_path):
    from transfer_course.engine.card import write_card

    data = colours(np.arange(24) % 3)
    net = backbone("efficientnet_lite0", "torch")
    train, held = data.subset(range(15)), data.subset(range(15, 24))
    result = fine_tune(net, train, None, Recipe("probe"), progress=False)
    about = abstain.note_unfamiliar(tmp_path, result, net, train, held)
    assert "auroc" not in about and "3 classes" in about["note"]
    memory = abstain.load_familiar(tmp_path, {"abstain": about})
    assert abstain.checked_rate(memory, None) == 0.1
    assert "3 classes" in abstain.told(about)
    card = write_card(tmp_path, dict(classes=["a"], abstain=about)).read_text()
    assert "3 classes" in card and "at most 10 %" in card


def test_other_targets_have_none(tmp_path):
    data = colours(np.arange(6) % 3)
    data.task = "labels"
    about = abstain.note_unfamiliar(tmp_path, None, None, data, data)
    assert "labels or numbers" in about["why"] and not list(tmp_path.iterdir())
    assert "labels or numbers" in abstain.told(about)


def test_the_signs_are_those_of_the_libraries():
    from scipy.special import logsumexp
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    logits, Z, known = (rng.normal(size=s) for s in ((9, 4), (9, 6), (20, 6)))
    assert np.allclose(abstain.energy(1000 * logits), -logsumexp(1000 * logits, axis=1))
    near = NearestNeighbors(n_neighbors=3).fit(abstain.unit(known))
    far = near.kneighbors(abstain.unit(Z))[0][:, -1]
    assert np.allclose(abstain.distance(Z, known), far, atol=1e-5)
    old, new = rng.integers(0, 8, 30), rng.integers(3, 11, 20)
    auroc = roc_auc_score(np.repeat([0, 1], [30, 20]), np.concatenate([old, new]))
    assert np.isclose(abstain.share_below(old, new).mean(), auroc)


def test_the_measured_pair_was_never_trained_on():
    """Left-out classes that equal a known one can't be told from it."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8
    at = rng.normal(size=(8, 12)) * 3
    for same, low, high in ((False, 0.9, 1), (True, 0.35, 0.75)):
        centres = at[labels % 2] if same else at[labels]
        known = Known(centres + rng.normal(size=(400, 12)), labels, np.arange(400))
        train, held = known.where(slice(0, 280)), known.where(slice(280, 400))
        found = abstain.auroc_left_out(train, held)
        assert low < found["auroc"] <= high and found["low"] <= found["auroc"]


def test_the_interval_covers():
    """Of 60 small worlds in which left-out classes differ, most hold the truth."""
    from scipy.stats import norm

    rng, hits, kinds = np.random.default_rng(0), [], np.arange(220) % 11
    truth, groups = norm.cdf(1 / np.sqrt(2 + 0.9**2)), np.arange(66)
    for _ in range(60):
        effect, old = rng.normal(0, 0.9, 11), rng.normal(size=66)
        lower, higher = np.full((10, 220), np.nan), np.full((10, 66), np.nan)
        for row, pair in enumerate(abstain.pairs_of(kinds)):
            mine, known = np.isin(kinds, pair), ~np.isin(groups % 11, pair)
            new = 1 + effect[kinds[mine]] + rng.normal(size=mine.sum())
            below = abstain.share_below(old[known], new)
            lower[row, mine], higher[row, known] = below.mean(0), below.mean(1)
        _, low, high = abstain.left_out_interval(lower, kinds, higher, groups)
        hits.append(low <= truth <= high)
    assert np.mean(hits) >= 0.87


def test_at_most_the_rate_is_refused_of_familiar_images():
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        known, held, fresh = (rng.normal(size=(n, 8)) for n in (30, 39, 50))
        memory = abstain.familiar(known, held, held[:, :3])
        shares.append((memory.familiarity(fresh, fresh[:, :3]) <= 0.1).mean())
    assert 0.075 < np.mean(shares) < 0.115


def pictures_of(section):
    """(alt text, image) of every image in a part of a page."""
    form = r"<img src='data:image/jpeg;base64,([^']+)' alt=\"([^\"]*)\""
    return [
        (alt, Image.open(io.BytesIO(base64.b64decode(data))))
        for data, alt in re.findall(form, section)
    ]


def section(page, title):
    return page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


@each
def test_the_report_shows_what_the_network_looked_at(framework, runs):
    at, _ = runs[framework]
    page = (at / "report.html").read_text()
    part = section(page, "What the network looked at")
    assert "warm colours" in part and "2 × 2 cells" in part and "does not say" in part
    found = pictures_of(part)
    maps = [(alt, image) for alt, image in found if alt.startswith("heat map for ")]
    assert len(maps) == len(found) / 2 and 3 <= len(maps) <= 5
    for alt, image in maps:
        assert re.search(r": warmest at the \w+ (left|centre|right)$", alt)
        assert image.size == (SIDE, SIDE)
    assert "violet &amp; pink" in part
    mistakes = section(page, "The most confident mistakes")
    assert mistakes.count("heat map for") * 2 == mistakes.count("<img")
    assert len(page) < 200_000


@each
def test_heat_lies_on_the_disc(framework, runs, strangers):
    """The end of it all: a saved run, a new image, and heat where the disc is."""
    from transfer_course import load_result
    from transfer_course.practice.heat import heat_map

    result, rng = load_result(runs[framework][0]), np.random.default_rng(3)
    images = []
    for y in (0, 64):
        canvas = rng.integers(90, 160, (128, 128, 3))
        canvas[y + 8 : y + 56, 40:88] = COLOURS["red"]
        images.append(canvas.astype(np.uint8))
    heat = heat_map(result, np.stack(images), "red")
    top = heat[:, :64].sum((1, 2)) / heat.sum((1, 2))
    assert top[0] > 0.5 > top[1]
