"""`transfer-course compare` as a process, and the arithmetic behind it."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from running import COMMAND, environment
from running import run as run_command

from transfer_course import cli
from transfer_course.engine.errors import BadValue, Damaged
from transfer_course.practice import compare
from transfer_course.practice.compare_runs import (
    Answer,
    Fold,
    check_strategies,
    folds_of,
    recipes_of,
)
from transfer_course.practice.holding_out import dealt
from transfer_course.practice.reading import Reading
from transfer_course.vision.images import ImageDataset

QUICK = ("--backbone", "small_cnn", "--size", 32, "--folds", 2, "--seeds", 2)


def run(*args, **how):
    return run_command("compare", *args, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, told by their colour; ten images of each, and a broken file."""
    place, rng = tmp_path_factory.mktemp("two") / "my images", np.random.default_rng(0)
    for name, colour in (("red", (200, 60, 60)), ("green", (60, 200, 60))):
        (place / name).mkdir(parents=True)
        for i in range(10):
            noise = rng.integers(-50, 50, (40, 40, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i}.png")
    (place / "red" / "broken.png").write_bytes(b"not an image")
    return place


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_strategies_are_compared_in_pairs(framework, folder, tmp_path):
    names = "majority,probe,lp_ft,ensemble"
    given = ("--strategies", names, "--epochs", 1, "--framework", framework)
    done = run(folder, *QUICK, *given, "--out", "here", "--json", cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "here/compare.json").read_text())
    strategies = names.split(",")
    cells = [(row["strategy"], row["seed"]) for row in found["rows"]]
    assert sorted(cells) == sorted((s, seed) for s in strategies for seed in (0, 1))
    of = {row["strategy"]: row["accuracy"] for row in found["summary"]}
    assert of["majority"] <= 0.5 < 0.9 < of["probe"]
    assert len(found["paired"]) == 6
    for row in found["paired"]:
        difference = of[row["a"]] - of[row["b"]]
        assert row["difference"] == pytest.approx(difference)
        assert row["low"] <= row["difference"] <= row["high"]
    assert (
        found["recommendation"] == "probe"
        and "cheaper" in found["why"]
        or (of["probe"] == max(of.values()))
    )
    assert [skip["reason"] for skip in found["skipped"]]
    assert "4 folds" in done.stderr and "left" in done.stderr
    page = (tmp_path / "here/compare.html").read_text()
    assert "Recommended: <b>probe</b>" in page and "lp_ft − probe" in page


def test_a_killed_comparison_goes_on(folder, tmp_path):
    given = (*QUICK, "--strategies", "probe,lp_ft", "--epochs", 2, "--out", "here")
    whole = run(folder, *given[:-1], "whole", "--json", cwd=tmp_path)
    child = subprocess.Popen(
        [*COMMAND, "compare", *map(str, (folder, *given))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )
    record = tmp_path / "here" / compare.RECORD
    end = time.time() + 300
    while not record.exists() and time.time() < end:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    stored = len(json.loads(record.read_text())["runs"])
    assert stored and not (tmp_path / "here/compare.html").exists()
    again = run(folder, *given, cwd=tmp_path, code=2)
    assert "--resume" in again.stderr
    other = run(folder, *given, "--resume", "--epochs", 3, cwd=tmp_path, code=2)
    assert "other training" in other.stderr
    done = run(folder, *given, "--resume", "--json", cwd=tmp_path)
    assert f"{4 - stored // 2} to run" in done.stderr
    found, expected = (json.loads(d.stdout.splitlines()[-1]) for d in (done, whole))
    assert found["rows"] == expected["rows"] and found["paired"] == expected["paired"]


@pytest.mark.parametrize(
    "given, told",
    [
        (("--strategies", "probe,finetune"), "Did you mean 'fine_tune'"),
        (("--strategies", "probe"), "two strategies or more"),
        (("--seeds", 0), "seeds is 0"),
        (("--folds", 1), "folds is 1"),
        (("--folds", 2, "--seeds", 1), "give no interval"),
        (("--epochs", 0), "epochs"),
        (("--out", "."), "holds other files"),
    ],
)
def test_a_mistake_gets_one_sentence(
    given, told, folder, tmp_path, capsys, monkeypatch
):
    (tmp_path / "note.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", str(folder), *map(str, given)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error and (tmp_path / "note.txt").read_text() == "mine"


def test_ready_made_test_images_are_the_ones_that_test():
    labels = np.arange(12) % 2
    splits = np.array(["train"] * 6 + ["valid"] * 2 + ["test"] * 4)
    images = np.zeros((12, 8, 8, 3), np.uint8)
    data = ImageDataset(images, labels, ["a", "b"], splits=splits)
    (fold,) = folds_of(data, seed=3, folds=5)
    assert fold.test.tolist() == [8, 9, 10, 11] and fold.train.tolist() == [*range(8)]


def test_every_seed_tests_every_image_once_by_identity():
    labels, groups = np.repeat([0, 1, 2], 20), np.repeat(np.arange(30), 2)
    images = np.zeros((60, 8, 8, 3), np.uint8)
    data = ImageDataset(images, labels, list("abc"), groups=groups)
    for seed in range(3):
        found = folds_of(data, seed, 5)
        tested = np.concatenate([fold.test for fold in found])
        assert sorted(tested) == list(range(60)) and len(found) == 5
        for fold in found:
            assert not set(groups[fold.train]) & set(groups[fold.test])


def test_identities_with_images_of_several_classes_are_dealt_too():
    labels, groups = np.arange(60) % 3, np.arange(60) // 12  # five patients
    fold = dealt(labels, groups, 5, np.random.default_rng(0))
    assert sorted(np.unique(fold)) == [0, 1, 2, 3, 4]
    labels[groups == 4] = 7  # a class that only one patient has
    fold = dealt(labels, groups, 5, np.random.default_rng(0))
    assert (fold[groups == 4] == -1).all() and (fold[groups < 4] >= 0).all()


def test_the_table_has_a_row_per_model():
    folds = [Fold(0, 0, [1], np.array([0, 2])), Fold(0, 1, [0, 2], np.array([1]))]
    right = np.array([True, False])
    answers = [Answer("a", 0, 1, 1.0, right[:1]), Answer("a", 0, 0, 1.0, right)]
    table = compare.as_table(answers, folds, 3)
    expected = [[1, np.nan, 0], [np.nan, 1, np.nan]]
    np.testing.assert_array_equal(table, expected)


def pair(a, b, difference, low, high):
    return {"a": a, "b": b, "difference": difference, "low": low, "high": high}


def test_the_simplest_that_can_not_be_told_apart_is_recommended():
    rows = [("majority", 0.3), ("probe", 0.7), ("lp_ft", 0.75)]
    rows += [("ensemble", 0.8)]
    summary = [dict(strategy=s, accuracy=a) for s, a in rows]
    unclear = pair("lp_ft", "probe", 0.05, -0.01, 0.11)
    clear = pair("lp_ft", "probe", 0.05, 0.01, 0.09)
    most = [pair("ensemble", "probe", 0.1, 0.02, 0.2)]
    beaten = [*most, pair("ensemble", "lp_ft", 0.05, 0.01, 0.1)]
    beaten += [pair("ensemble", "majority", 0.5, 0.4, 0.6)]
    not_beaten = [*most, pair("lp_ft", "ensemble", -0.05, -0.1, 0.01)]
    assert compare.recommended(summary[:3], [unclear])[0] == "probe"
    assert compare.recommended(summary[:3], [clear])[0] == "lp_ft"
    assert compare.recommended(summary, [clear, *not_beaten])[0] == "lp_ft"
    assert compare.recommended(summary, [clear, *beaten])[0] == "ensemble"
    assert compare.recommended(summary[:1], [])[0] == ""


def test_the_ensemble_has_three_rates_around_the_usual_one():
    rates = [recipe.lr for recipe in recipes_of("ensemble", 5, epochs=2)]
    usual = recipes_of("lp_ft", 5, epochs=2)[0]
    np.testing.assert_allclose(rates, [usual.lr / 3, usual.lr, usual.lr * 3])
    assert check_strategies(["ensemble", "probe"]) == ("probe", "ensemble")


def test_a_damaged_record_is_told(folder, tmp_path):
    (tmp_path / compare.RECORD).write_text("{")
    how = dict(strategies=("majority", "probe"), backbone="small_cnn", progress=False)
    reading = Reading(size=32)
    with pytest.raises(Damaged, match="can't be read"):
        compare.compare_source(folder, tmp_path, reading=reading, resume=True, **how)


def test_a_class_with_one_image_can_not_be_compared(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (40, 40, 3))
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(tmp_path / "images" / name / "1.png")
    how = dict(strategies=("majority", "probe"), backbone="small_cnn", progress=False)
    reading = Reading(size=32)
    with pytest.raises(BadValue, match="No image can be tested"):
        compare.compare_source(
            tmp_path / "images", tmp_path / "o", reading=reading, **how
        )
