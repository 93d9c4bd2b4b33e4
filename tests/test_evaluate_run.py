"""A test set that decides nothing, and the command `evaluate`, on folders made here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from transfer_course.engine.errors import BadValue, Damaged
from transfer_course.practice.describing import scored_part
from transfer_course.practice.evaluate_run import evaluate_run, matched
from transfer_course.practice.holding_out import (
    TEST_FROM,
    cross_validate,
    dealt,
    hold_out,
    read_images,
    why_no_test,
)
from transfer_course.practice.own_folder import tune_folder
from transfer_course.vision.calibration import (
    brier_scores,
    calibration_error,
    chance_error,
    equal_mass,
    log_losses,
    reliability,
)
from transfer_course.vision.data import ImageDataset, image_folder
from transfer_course.vision.evaluate import interval
from transfer_course.vision.recalls import balanced_interval, recalls

CLASSES = ("été rond", "square", "Ψ cross")
FRAMEWORKS = pytest.mark.parametrize("framework", ["torch", "keras"])


def run(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "transfer_course.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def last(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


def picture(kind, i):
    """A shape on noise, half hidden; never the same twice."""
    rng = np.random.default_rng([kind, i])
    pixels = rng.integers(60, 200, (10, 10, 3), dtype=np.uint8)
    pixels = np.array(
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
    )
    y, x = np.mgrid[:40, :40] - 20 - rng.integers(-6, 7, (2, 1, 1))
    shape = [x**2 + y**2 < 90, (abs(x) < 9) & (abs(y) < 9), (abs(x) < 3) | (abs(y) < 3)]
    colour = rng.integers(0, 256, 3)
    pixels[shape[kind]] = 0.5 * pixels[shape[kind]] + 0.5 * colour
    return Image.fromarray(pixels)


def filled(root, numbers, kinds=range(3)):
    for kind in kinds:
        (root / CLASSES[kind]).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            picture(kind, i).save(root / CLASSES[kind] / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """240 images, so that a test set is held out."""
    return filled(tmp_path_factory.mktemp("data") / "shapes", range(80))


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """A run of each framework, and what the command printed."""
    made, how = {}, ("--strategy", "probe", "--size", 32, "--json")
    for framework in ("torch", "keras"):
        out = tmp_path_factory.mktemp("runs") / framework
        done = run("fine-tune", folder, "--framework", framework, "--out", out, *how)
        made[framework] = out, done
    return made


def info_of(out):
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


@FRAMEWORKS
def test_from_200_images_on_a_test_set_decides_nothing(framework, runs, folder):
    out, done = runs[framework]
    info, summary, rows = info_of(out), last(done), read_images(out)
    sizes = [info["n_train"], info["n_valid"], info["n_test"]]
    assert sum(sizes) == 240 and 40 <= sizes[2] <= 56 and sizes[1] >= 30
    assert info["metrics"]["part"] == "test" and info["metrics"]["n"] == sizes[2]
    assert info["validation"]["part"] == "validation, which chose"
    assert summary["n_test"] == sizes[2] and summary["part"] == "test"
    assert "cross_validation" not in info and "note" not in info["metrics"]
    assert "accuracy on the test images" in done.stderr
    assert "validation images, which chose" in done.stderr
    # images.csv: every file once, with its class and the digest of what was read
    data = image_folder(folder, size=32)
    assert [row.path for row in rows] == sorted(data.names)
    assert {row.path: row.digest for row in rows} == dict(
        zip(data.names, data.digests(), strict=True)
    )
    assert all(row.label == Path(row.path).parent.name for row in rows)
    splits = [row.split for row in rows]
    assert [splits.count(name) for name in ("train", "valid", "test")] == sizes
    test = [row.path for row in rows if row.split == "test"]
    assert info["held_out"]["test"] == test
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"of {sizes[2]} test images were recognised" in page
    assert f"{sizes[2]} to test on" in page and "validation images, which chose" in page
    card = (out / "card.md").read_text(encoding="utf-8")
    assert f"{sizes[2]} to test on" in card


@FRAMEWORKS
def test_evaluate_gives_the_test_accuracy_back(framework, runs, folder, tmp_path):
    """The run's own test files, elsewhere: the same number, and no warning."""
    out, _ = runs[framework]
    for row in read_images(out):
        if row.split == "test":
            (tmp_path / row.path).parent.mkdir(exist_ok=True)
            shutil.copy(folder / row.path, tmp_path / row.path)
    done = run("evaluate", out, tmp_path, "--json")
    found = last(done)
    assert abs(found["accuracy"] - info_of(out)["metrics"]["accuracy"]) < 1e-9
    assert found["seen"] == {"train": 0, "valid": 0} and not found["seen_paths"]
    assert "training set" not in done.stderr and done.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def others(runs, folder, tmp_path_factory):
    """New images, an unknown class, a training file, and one saved again."""
    root = filled(tmp_path_factory.mktemp("new") / "new", range(100, 112), (0, 1))
    (root / "star").mkdir()
    for i in range(3):
        picture(2, 200 + i).save(root / "star" / f"{i}.png")
    rows = [row for row in read_images(runs["torch"][0]) if row.split == "train"]
    mine = [folder / row.path for row in rows if row.label == CLASSES[1]]
    shutil.copy(mine[0], root / CLASSES[1] / "same file.png")
    again = Image.open(mine[1]).resize((80, 80), Image.Resampling.BICUBIC)
    again.save(root / CLASSES[1] / "again.jpg", quality=95)
    return root


@FRAMEWORKS
def test_evaluate_scores_and_warns(framework, runs, others, tmp_path):
    done = run("evaluate", runs[framework][0], others, "--out", tmp_path, "--json")
    found, metrics = last(done), last(done)["metrics"]
    names = sorted(Path(path).name for path in found["seen_paths"])
    assert names == ["again.jpg", "same file.png"] and found["seen"]["train"] == 2
    assert "2 of 26 images were in the run's training set" in done.stderr
    assert found["without_seen"]["n"] == 24 and metrics["n"] == 26
    assert found["unknown_classes"] == {"star": 3}
    assert found["with_unknown"]["n"] == 29
    right = sum(row["right"] for row in found["per_class"])
    assert abs(found["with_unknown"]["accuracy"] - right / 29) < 1e-9
    assert found["without_images"] == [CLASSES[2]]
    assert np.trace(found["confusion"]) == right and np.sum(found["confusion"]) == 26
    for row in found["per_class"]:
        assert row["recall"]["low"] <= row["right"] / row["n"] <= row["recall"]["high"]
    balanced = metrics["balanced"]
    assert balanced["low"] < metrics["balanced_accuracy"] < balanced["high"]
    bins = found["calibration"]["bins"]
    assert sum(b["n"] for b in bins) == 26
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]["mean"]) for b in bins)
    assert abs(found["calibration"]["error"] - error / 26) < 1e-9
    page = (tmp_path / "evaluate.html").read_text(encoding="utf-8")
    assert "<svg" in page and "<script" not in page and "same file.png" in page
    whole = json.loads((tmp_path / "evaluate.json").read_text(encoding="utf-8"))
    assert len(whole["images"]) == 29
    assert {line["seen"] for line in whole["images"]} == {None, "train"}


def test_evaluate_refuses_in_a_sentence(runs, folder, tmp_path):
    out = runs["torch"][0]
    filled(tmp_path / "a", range(2))
    for i, name in enumerate(CLASSES):
        (tmp_path / "a" / name).rename(tmp_path / "a" / f"other {i}")
    done = run("evaluate", out, tmp_path / "a", code=2)
    assert "No class of these images is one of" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "no folder" in run("evaluate", out, tmp_path / "b", code=2).stderr.lower()
    assert "no run.json" in run("evaluate", tmp_path, folder, code=2).stderr


def test_an_old_run_says_what_is_not_known(runs, others, tmp_path):
    old = shutil.copytree(runs["torch"][0], tmp_path / "old")
    (old / "images.csv").unlink()
    said = []
    found = evaluate_run(old, others, say=said.append, progress=False)
    assert any("earlier version" in text for text in said)
    assert found["seen"]["train"] == 0 and "majority" in found["baselines"]
    (old / "images.csv").write_text("path,class\n")
    with pytest.raises(Damaged, match="images.csv"):
        evaluate_run(old, others, progress=False)


def test_moved_training_images_leave_the_exact_digests(runs, others, tmp_path):
    moved = shutil.copytree(runs["torch"][0], tmp_path / "run")
    info = info_of(moved) | {"source": str(tmp_path / "gone")}
    (moved / "run.json").write_text(json.dumps(info), encoding="utf-8")
    said = []
    found = evaluate_run(moved, others, say=said.append, progress=False)
    assert [Path(p).name for p in found["seen_paths"]] == ["same file.png"]
    assert any("only equal files" in text for text in said)


def test_resume_gives_the_test_score_back_and_mends_what_is_missing(
    runs, folder, tmp_path
):
    done = shutil.copytree(runs["torch"][0], tmp_path / "run")
    how = dict(strategy="probe", size=32, progress=False, resume=True)
    files = {
        n: (done / n).read_bytes() for n in ("report.html", "card.md", "images.csv")
    }
    (done / "images.csv").unlink()
    (done / "report.html").unlink()
    again = tune_folder(folder, done, **how)
    assert again["accuracy"] == info_of(done)["metrics"]["accuracy"]
    page = (done / "report.html").read_bytes()
    assert page == files["report.html"].replace(bytes(runs["torch"][0]), bytes(done))
    assert (done / "images.csv").read_bytes() == files["images.csv"]
    with pytest.raises(BadValue, match="other images"):
        tune_folder(filled(tmp_path / "few", range(4)), done, **how)


def test_below_200_a_probe_is_cross_validated(tmp_path):
    """And a file name with a line end, a quote and a byte that is no text is listed."""
    folder, said = filled(tmp_path / "few", range(9)), []
    first = folder / CLASSES[0]
    os.rename(first / "000.png", first / 'two\n"lines".png')
    os.rename(os.fsencode(first / "001.png"), os.fsencode(first) + b"/\xe9.png")
    how = dict(strategy="probe", size=32, progress=False, say=said.append)
    summary = tune_folder(folder, tmp_path / "run", **how)
    info, rows = info_of(tmp_path / "run"), read_images(tmp_path / "run")
    assert summary["n_test"] == 0 and info["metrics"]["part"] == "held-out"
    found = info["cross_validation"]
    assert found["n"] == 27 and found["repeats"] == 3 and found["folds"] == 5
    assert found["low"] < found["accuracy"] < found["high"]
    assert any("by cross-validation over 27 images" in text for text in said)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "There is no test set: 27 images are too few" in page
    names = {row.path.partition("/")[2] for row in rows}
    assert len(rows) == 27 and {'two\n"lines".png', "\\xe9.png"} <= names
    assert {row.split for row in rows} == {"train", "valid"}


def made(labels, groups=None):
    black = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ImageDataset(black, np.asarray(labels, np.int64), groups=groups)


def test_what_decides_about_a_test_set():
    enough = made(np.arange(TEST_FROM) % 4)
    assert why_no_test(enough) == "" and len(hold_out(enough).test) == TEST_FROM // 5
    assert scored_part(hold_out(enough)).labels.tolist()
    few = made(np.arange(TEST_FROM - 1) % 4)
    assert "too few" in why_no_test(few) and not len(hold_out(few).test)
    bursts = made(np.arange(300) % 2, np.arange(300) // 20 * 2 + np.arange(300) % 2)
    assert "different subjects" in why_no_test(bursts)
    pairs = made(np.arange(400) // 2)
    assert "typical class has 2" in why_no_test(pairs)


def test_ready_made_splits_are_used_as_given():
    class Given(ImageDataset):
        def split(self, valid, test, seed):
            return valid, test, seed

    data = Given(np.zeros((300, 1, 1, 3), np.uint8), np.arange(300) % 3)
    data.splits = np.repeat(["train", "valid"], 150)
    assert hold_out(data, 7) == (0.2, 0, 7)  # nothing is taken for a test set
    assert why_no_test(data) == "the ready-made splits have none"
    data.splits = np.repeat(["train", "test"], 150)
    assert why_no_test(data) == ""


def test_folds_keep_identities_whole_and_classes_trained():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 200)
    labels = groups % 7
    labels[groups == 39] = 7  # a class of one identity
    fold = dealt(labels, groups, 5, rng)
    assert (fold[labels == 7] == -1).all() and set(fold) == {-1, 0, 1, 2, 3, 4}
    for group in range(40):
        assert len(set(fold[groups == group])) <= 1
    for k in range(5):
        assert set(labels[fold != k]) == set(labels)


def test_cross_validation_does_not_learn_labels_by_lot():
    rng = np.random.default_rng(1)
    Z, y = np.abs(rng.normal(size=(60, 5))), np.arange(60) % 3
    assert cross_validate(Z, y, repeats=1)["accuracy"] < 0.6
    Z[np.arange(60), y] += 20
    assert cross_validate(Z, y, repeats=1)["accuracy"] > 0.95
    assert cross_validate(Z[:2], y[:2]) == {}
    # copies of an image never test a probe that was trained on one of them
    lot = rng.integers(0, 2, 30)
    Z, y, groups = np.repeat(rng.normal(size=(30, 20)), 4, 0), np.repeat(lot, 4), None
    leaking = cross_validate(Z - Z.min(), y, groups, repeats=1)["accuracy"]
    honest = cross_validate(Z - Z.min(), y, np.arange(120) // 4, repeats=1)["accuracy"]
    assert leaking > 0.9 > honest


def test_calibration_equals_the_references():
    rng = np.random.default_rng(2)
    P, y = rng.dirichlet(np.ones(5), 300), rng.integers(0, 5, 300)
    sure, right = P.max(1), P.argmax(1) == y
    accuracy, mean = calibration_curve(right, sure, n_bins=10, strategy="quantile")
    expected = np.abs(accuracy - mean).mean()
    assert abs(calibration_error(sure, right) - expected) < 1e-12
    assert abs(log_losses(P, y).mean() - log_loss(y, P)) < 1e-12
    brier = brier_score_loss(y, P, labels=range(5), scale_by_half=False)
    assert abs(brier_scores(P, y).mean() - brier) < 1e-12
    rows = reliability(sure, right)
    assert np.allclose([row.accuracy.mean for row in rows], accuracy)
    assert [len(np.unique(equal_mass(sure, k))) for k in (1, 3, 10)] == [1, 3, 10]
    assert equal_mass([1.0] * 50).max() == 0
    # a network that is always right and sure shows nothing, and chance shows nothing
    assert chance_error([1.0] * 50).high == 0
    assert chance_error(sure[:50]).mean > chance_error(sure).mean > 0


def test_recalls_and_balanced_accuracy():
    labels, right = np.repeat([0, 1], [30, 4]), np.r_[np.ones(27), np.zeros(4), 1, 1, 1]
    rows = recalls(labels, right, 3)
    assert [(row.n, row.right) for row in rows] == [(30, 27), (4, 3), (0, 0)]
    assert rows[2].interval is None and rows[0].interval == interval(
        right[:30], None, 0.95
    )
    mean, low, high = balanced_interval(labels, right)
    assert abs(mean - (0.9 + 0.75) / 2) < 1e-12 and 0 < low < mean < high <= 1
    assert balanced_interval(labels, np.ones(34)).low < 0.95
    across = balanced_interval(labels, right, np.arange(34) % 9)
    assert abs(across.mean - mean) < 1e-12 and across.low < mean < across.high


def test_classes_are_matched_in_either_unicode_form():
    data = made([0, 1, 0])
    data.classes = ["e\u0301te\u0301", "new"]
    assert matched(data, ["x", "\u00e9t\u00e9"], "run").tolist() == [1, -1, 1]
    with pytest.raises(BadValue, match="Did you mean 'News'"):
        data.classes = ["news", "b"]
        matched(data, ["News", "c"], "run")


def test_the_help_says_what_evaluate_does():
    text = re.sub(r"\s+", " ", run("evaluate", "--help").stdout)
    assert "Warns about images that the run was trained on" in text
    assert "transfer-course evaluate runs/mine new-photos/" in text
