"""Classes of unequal size: one objective in probe and loop, weights from a file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import colours

from transfer_course.engine.errors import BadValue, NotFound
from transfer_course.practice.imbalance import read_weights, recalls, weights_for
from transfer_course.practice.own_folder import tune_folder
from transfer_course.trainer.recipe import Recipe, plan
from transfer_course.trainer.start import class_weights, starting_head
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import image_folder
from transfer_course.vision.features import extract, head_from_probe, linear_probe

BOTH = ("torch", "keras")
COUNTS = {"common": 60, "less": 20, "rare": 6}


def grey(kind, seed):
    """An image whose mean grey scatters around its class's; the classes overlap."""
    r = np.random.default_rng([kind, seed])
    mean = 90 + 25 * kind + r.normal(0, 25)
    noise = r.integers(-40, 41, (40, 40, 3))
    return Image.fromarray((mean + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def tailed(tmp_path_factory):
    """A folder of 60, 20 and 6 images, and one of 40 new images of the rare class."""
    root = tmp_path_factory.mktemp("tailed")
    for kind, (name, n) in enumerate(COUNTS.items()):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(n):
            grey(kind, i).save(root / "photos" / name / f"{i}.png")
    (root / "new").mkdir()
    for i in range(40):
        grey(2, 1000 + i).save(root / "new" / f"{i}.png")
    return root


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


# --- weights from a file --------------------------------------------------------------


def test_csv_and_json_give_the_same_weights(tmp_path):
    written = {"cat": 1.0, "head louse, white": 7.5, "猫": 0.25}
    forms = {
        "a.json": json.dumps(written),
        "a.csv": 'cat,1\n"head louse, white",7.5\n猫,0.25\n',
        "b.csv": '\ufeffClass,Weight\r\n猫,.25\r\ncat, 1\r\n"head louse, white",7.5\n',
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        weights = read_weights(str(tmp_path / name))
        assert weights_for(weights, list(written)) == (1.0, 7.5, 0.25)
    assert read_weights("none") is None and read_weights("balanced") == "balanced"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cat,1\ndog,-2\n", "'dog' the weight '-2'; expected a number above 0"),
        ("cat,1\ndog,0\n", "'dog' the weight '0'"),
        ("cat,nan\ndog,1\n", "'cat' the weight 'nan'"),
        ("cat,1\ndog,much\n", "'dog' the weight 'much'"),
        ("cat,1\ndog\n", "the line 'dog'; expected a class, a comma and its weight"),
        ("cat,1\ncat,2\n", "the class 'cat' twice"),
        ('{"cat": 1, "dog": true}', "'dog' the weight True"),
        ('{"cat": 1, "cat": 2}', "the class 'cat' twice"),
        ('{"cat": 1', "is no JSON"),
        ("cat,1\n", "have none for 'dog'"),
        ("cat,1\ndog,1\ndgo,1\n", "name 'dgo', .*Did you mean 'dog'"),
    ],
)
def test_a_file_that_makes_no_sense_gets_a_sentence(text, why, tmp_path):
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(BadValue, match=why):
        weights_for(read_weights(tmp_path / "w.csv"), ["cat", "dog"])


def test_a_missing_file_is_said_before_an_image_is_read(tmp_path, tailed):
    with pytest.raises(NotFound, match="expected none, balanced or a CSV.*'balanced'"):
        read_weights("balance")
    photos, out = tailed / "photos", tmp_path / "run"
    how = ("--strategy", "probe", "--size", 32, "--out", out)
    (tmp_path / "w.json").write_text('{"common": 1, "less": 2}')
    for given, why in (("w", "no such file"), (tmp_path / "w.json", "none for 'rare'")):
        done = command("fine-tune", photos, *how, "--class-weights", given, code=2)
        assert why in done.stderr and not out.exists()


# --- one objective --------------------------------------------------------------------


@pytest.mark.parametrize("framework", BOTH)
@pytest.mark.parametrize("weights", [None, "balanced", (0.5, 1.0, 4.0)])
def test_the_head_starts_from_a_probe_with_the_weights_of_the_loop(framework, weights):
    data = colours(np.repeat(np.arange(3), (12, 8, 4)), 200, brighter=0)
    net = backbone("small_cnn", framework, weights=None, seed=3)
    recipe = Recipe("lp_ft", class_weights=weights)
    W, b = starting_head(net, data, recipe, plan(recipe, net.stages))
    Z = extract(net, data, progress=False)
    probe = linear_probe(Z, data.labels, data.groups, class_weights=weights)
    W_probe, b_probe = head_from_probe(probe, 3)
    assert np.allclose(W, W_probe, atol=1e-4) and np.allclose(b, b_probe, atol=1e-4)
    other = None if weights == "balanced" else "balanced"
    probe = linear_probe(Z, data.labels, data.groups, class_weights=other)
    assert np.abs(b - head_from_probe(probe, 3)[1]).max() > 0.05


@pytest.mark.parametrize("framework", BOTH)
def test_a_long_tail_with_and_without_weights(framework, tailed, tmp_path):
    photos, size = tailed / "photos", 32
    how = ("--framework", framework, "--strategy", "probe", "--size", size, "--json")
    found, rare = {}, {}
    for weights in ("none", "balanced"):
        out = tmp_path / weights
        given = ("--class-weights", weights, "--out", out)
        done = command("fine-tune", photos, *how, *given)
        found[weights] = json.loads(done.stdout)
        assert ("Rare classes may be missed" in done.stderr) == (weights == "none")
        assert "lowest recall: " in done.stderr
        rows = command("predict", out, tailed / "new", "--json").stdout.splitlines()
        rare[weights] = np.mean([json.loads(row)["class"] == "rare" for row in rows])
    assert rare["balanced"] > rare["none"] + 0.2, rare
    info = json.loads((tmp_path / "balanced/run.json").read_text())
    assert info["recipe"]["class_weights"] == "balanced"
    assert list(found["none"]["recall"]) == list(COUNTS)
    assert {one["n"] for one in found["none"]["recall"].values()} == {12, 4, 1}
    report = (tmp_path / "none/report.html").read_text()
    assert "<h3>Each class</h3>" in report and "Rare classes may be missed" in report
    one = found["none"]["recall"]["common"]
    assert f"<small>{one['low']:.2f} to {one['high']:.2f}</small>" in report
    # The baselines have the weights of the run.
    net, data = backbone("efficientnet_lite0", framework), image_folder(photos, size)
    parts = data.split(valid=0.2, test=0, seed=0)
    for weights in (None, "balanced"):
        recipe = Recipe(class_weights=weights)
        Z, y = extract(net, parts.train, progress=False), parts.train.labels
        given = class_weights(recipe, parts.train)
        probe = linear_probe(Z, y, parts.train.groups, class_weights=given)
        right = probe.predict(extract(net, parts.valid, progress=False))
        accuracy = float((right == parts.valid.labels).mean())
        run = json.loads((tmp_path / (weights or "none") / "run.json").read_text())
        assert run["baselines"]["probe"]["accuracy"] == pytest.approx(accuracy)


def test_a_finished_run_is_given_back_only_with_its_weights(tailed, tmp_path):
    (tmp_path / "w.json").write_text('{"rare": 4, "less": 2, "common": 1}')
    how = dict(strategy="probe", size=32, progress=False)
    run = tmp_path / "run"
    tune_folder(tailed / "photos", run, class_weights=tmp_path / "w.json", **how)
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert recipe["class_weights"] == [1, 2, 4]
    how |= dict(resume=True)
    tune_folder(tailed / "photos", run, class_weights=(1, 2, 4), **how)
    with pytest.raises(BadValue, match="class_weights"):
        tune_folder(tailed / "photos", run, class_weights="balanced", **how)


def test_the_recall_of_each_class_has_its_interval():
    labels = np.repeat([0, 1, 2], (20, 5, 1))
    guess = labels.copy()
    guess[[0, 1, 20]] = 2
    found = recalls(labels, guess, None, ["a", "b", "c", "d"])
    assert [one["n"] for one in found.values()] == [20, 5, 1, 0]
    assert [one["recall"] for one in found.values()] == [0.9, 0.8, 1.0, None]
    assert (
        found["b"]["high"] - found["b"]["low"] > found["a"]["high"] - found["a"]["low"]
    )
    assert found["c"]["low"] is None and found["d"]["low"] is None
    # Five images of one identity are one observation.
    assert recalls(labels, guess, np.zeros(26), "abcd")["b"]["low"] is None
