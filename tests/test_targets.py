"""Several labels, and numbers: from a CSV to a run, in both frameworks."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from transfer_course.engine.errors import BadValue
from transfer_course.vision.images import ImageDataset
from transfer_course.vision.target_tables import target_table

LABELS = ["red", "green", "blue"]


def tagged_pixels(n=90, seed=0):
    """Noise whose channel c is brighter where the image has label c, and the labels."""
    rng = np.random.default_rng(seed)
    has = rng.random((n, 3)) < [0.5, 0.35, 0.25]
    noise = rng.integers(0, 100, (n, 40, 40, 3), dtype=np.uint8)
    return noise + np.uint8(90) * has[:, None, None, :].astype(np.uint8), has


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with two tables: `tags.csv`, and `light.csv` with 10 × brightness."""
    place = tmp_path_factory.mktemp("targets")
    pixels, has = tagged_pixels()
    tags, light = [("file", "label")], [("file", "label")]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(place / f"{i}.png")
        tags.append((f"{i}.png", "|".join(np.array(LABELS)[has[i]])))
        light.append((f"{i}.png", f"{10 * image.mean():.1f}"))
    for name, rows in (("tags", tags), ("light", light)):
        with open(place / f"{name}.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows(rows)
    return place


def run(*words):
    """The command line as a process; (exit code, JSON lines of stdout, stderr)."""
    command = [sys.executable, "-m", "transfer_course.cli", *map(str, words)]
    env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return done.returncode, lines, done.stderr


TINY = ("--backbone", "small_cnn", "--size", 32, "--epochs", 2)
CASES = [(t, f) for t in ("labels", "numbers") for f in ("torch", "keras")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def trained(request, folder):
    """A run of the command line: (target, framework, folder of the run, summary)."""
    target, framework = request.param
    table = folder / {"labels": "tags.csv", "numbers": "light.csv"}[target]
    out = folder / f"{target}-{framework}"
    how = ("--framework", framework, "--strategy", "lp_ft", "--out", out, "--json")
    code, lines, errors = run("fine-tune", table, "--target", target, *TINY, *how)
    assert code == 0, errors
    return target, framework, out, lines[-1]


def test_the_command_trains_on_labels_and_on_numbers(trained):
    target, framework, out, summary = trained
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert info["target"] == summary["target"] == target
    metrics, beside = info["metrics"], info["baselines"]
    if target == "labels":
        assert info["classes"] == sorted(LABELS) and len(info["thresholds"]) == 3
        assert metrics["mean_average_precision"] > 0.9
        assert metrics["mean_average_precision"] == summary["mean_average_precision"]
        assert metrics["low"] > beside["prevalence"]["mean_average_precision"]
        assert len(metrics["per_label"]) == 3
        assert info["counts"] == {c: info["counts"][c] for c in sorted(LABELS)}
    else:
        assert info["classes"] == ["label"] and len(info["mean"]) == 1
        assert metrics["high"] < beside["mean"]["mean_absolute_error"]
        assert metrics["r2"] > 0.5
    rows = info["history"]
    assert all("valid_score" in row and "accuracy" not in row for row in rows)
    report = (out / "report.html").read_text(encoding="utf-8")
    card = (out / "card.md").read_text(encoding="utf-8")
    shown = {"labels": "Each label", "numbers": "Predicted and true"}[target]
    assert shown in report and "Who is taken for whom" not in report
    assert "mean a" in card.lower() and framework in card


def test_predict_names_labels_or_gives_the_number(trained, folder):
    from transfer_course.practice.predicting import predict_files

    target, framework, out, _ = trained
    images = folder / "0.png", folder / "1.png"
    if (target, framework) in (("labels", "torch"), ("numbers", "keras")):
        code, rows, errors = run("predict", out, *images)
        assert code == 0 and len(rows) == 2, errors
    else:
        rows = list(predict_files(out, images))
    pixels, has = tagged_pixels()
    if target == "numbers":
        for row, image in zip(rows, pixels, strict=False):
            assert row["values"] == {"label": row["value"]}
            assert abs(row["value"] - 10 * image.mean()) < 150
        return
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    least = dict(zip(info["classes"], info["thresholds"], strict=True))
    for row, one in zip(rows, has, strict=False):
        assert {x["label"] for x in row["labels"]} == set(np.array(LABELS)[one])
        assert all(x["probability"] >= least[x["label"]] for x in row["labels"])
        assert len(row["top"]) == 3


def test_a_saved_run_scores_as_it_did_and_refuses_other_answers(trained, folder):
    from transfer_course.trainer.run import load_result

    target, _, out, _ = trained
    result = load_result(out)
    name = {"labels": "tags.csv", "numbers": "light.csv"}[target]
    data = target_table(folder / name, 32, target, progress=False)
    found = result.evaluate(data)
    if target == "labels":
        assert found["mean_average_precision"] > 0.9 and 0.8 < found["f1"] <= 1
    else:
        assert found["low"] < found["mean_absolute_error"] < found["high"]
    plain = ImageDataset(data.batch([0, 1]), [0, 1], ["a", "b"])
    with pytest.raises(BadValue, match=f"trained on {target}"):
        result.evaluate(plain)


def test_mistakes_are_one_sentence_with_the_row(folder):
    bad = folder / "bad.csv"
    bad.write_text("file,label\n0.png,3\n1.png,many\n", encoding="utf-8")
    how = ("--size", 32, "--out", folder / "none", "--json")
    code, lines, errors = run("fine-tune", bad, "--target", "numbers", *how)
    assert code == 2 and "row 3" in lines[0]["error"] and "many" in lines[0]["error"]
    code, lines, _ = run("fine-tune", folder, "--target", "labels", *how)
    assert code == 2 and "CSV" in lines[0]["error"]
    both = folder / "both.csv"
    both.write_text("file,label\n0.png,a|b\n1.png,a;b\n", encoding="utf-8")
    code, lines, _ = run("fine-tune", both, "--target", "labels", *how)
    assert code == 2 and "--separator" in lines[0]["error"]
    assert not (folder / "none").exists()


def targets_of(data):
    return data.targets[np.argsort(data.names)]


def test_every_way_of_choosing_rows_takes_the_targets_along():
    pixels, has = tagged_pixels(40)
    names = [str(i) for i in range(40)]
    how = dict(classes=LABELS, targets=has, task="labels", names=names)
    data = ImageDataset(pixels, groups=np.arange(40) // 2, **how)
    parts = data.split(valid=0.25, test=0.25, seed=1)
    assert min(map(len, parts)) > 5 and all(p.task == "labels" for p in parts)
    for part in parts:
        assert np.array_equal(part.targets, has[np.array(part.names, int)])
    joined = parts.train.concat(parts.valid).concat(parts.test)
    assert np.array_equal(targets_of(joined), targets_of(data))
    assert joined.classes == LABELS and joined.counts() == data.counts()


@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_both_frameworks_make_the_same_updates(task):
    """The losses and the trained heads agree from the same backbone and batches."""
    from transfer_course.trainer.recipe import Recipe
    from transfer_course.trainer.run import fine_tune
    from transfer_course.vision.backbones import backbone

    pixels, has = tagged_pixels(48)
    targets = has if task == "labels" else pixels.mean((1, 2, 3))[:, None] * 10
    classes = LABELS if task == "labels" else ["light"]
    data = ImageDataset(pixels, classes=classes, targets=targets, task=task)
    weights = "balanced" if task == "labels" else None
    recipe = Recipe("fine_tune", epochs=1, batch_size=16, class_weights=weights)
    how = dict(train_from="top", optimizer="sgd", momentum=0.0)
    recipe = recipe.but(label_smoothing=0.1, **how)
    found = []
    for framework in ("torch", "keras"):
        net = backbone("efficientnet_lite0", framework)
        found.append(fine_tune(net, data, None, recipe, progress=False))
    torch_losses, keras_losses = (r.step_losses for r in found)
    assert np.allclose(torch_losses, keras_losses, rtol=2e-3, atol=1e-4)
    scale = 1 if task == "labels" else targets.std()
    one, other = (r.predict(pixels[:8]) / scale for r in found)
    assert np.abs(one - other).max() < 0.02


def test_auto_compares_and_numbers_have_no_class_weights():
    from transfer_course.trainer.recipe import Recipe
    from transfer_course.trainer.run import fine_tune
    from transfer_course.vision.backbones import backbone

    pixels, _ = tagged_pixels(60)
    light = pixels.mean((1, 2, 3))[:, None]
    data = ImageDataset(pixels, classes=["light"], targets=light, task="numbers")
    parts = data.split(valid=0.4, test=0, seed=0)
    net, said = backbone("small_cnn", "torch"), []
    recipe = Recipe("auto", epochs=1, batch_size=16)
    sets = parts.train, parts.valid
    result = fine_tune(net, *sets, recipe, say=said.append, progress=False)
    about = result.info["auto"]
    assert about["chosen"] in ("probe", "lp_ft") and "score" in about["probe"]
    assert said[0].startswith("probe error ")
    with pytest.raises(BadValue, match="numbers have none"):
        fine_tune(net, *sets, Recipe("probe", class_weights="balanced"))
    same = ImageDataset(pixels, classes=["x"], targets=light * 0 + 3, task="numbers")
    with pytest.raises(BadValue, match="nothing to learn"):
        fine_tune(net, same, None, Recipe("probe"))
