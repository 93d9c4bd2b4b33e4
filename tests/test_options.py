"""Training options: mixup and mirroring in both frameworks, recipes in files, logs,
a dry run, and what an interruption says.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from kill import environment, small_folder
from test_cli import here
from tiny import PLAIN, colours, keras_backbone

from transfer_course.engine.errors import BadValue, MissingExtra
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.practice import logging_runs
from transfer_course.practice.recipes_file import from_yaml, read_recipe, to_yaml
from transfer_course.practice.settings import default_recipe
from transfer_course.trainer.batches import Epoch
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.result import Best, softmax
from transfer_course.trainer.run import fine_tune
from transfer_course.vision.backbones import backbone
from transfer_course.vision.freezing import moved, snapshot

MIXED = Recipe(epochs=3, batch_size=8, lr=1e-3, mixup=0.4, augment=0.5)
COMMAND = [sys.executable, "-m", "transfer_course.cli"]


@pytest.fixture(scope="module")
def data():
    return colours(np.arange(30) % 3)


@pytest.fixture(scope="module")
def nets():
    return {
        "torch": backbone("small_cnn", "torch", weights=None, seed=0),
        "keras": keras_backbone(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("data") / "things", each=10)


def run(*args, code=0):
    """The command as a process; what it printed."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def last(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- mixup ----------------------------------------------------------------------------


def cross_entropy(logits, labels):
    p = softmax(np.asarray(logits))
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_loss_of_the_first_step_is_the_mixture_of_both_losses(
    framework, nets, data
):
    recipe = MIXED.but(strategy="head", head_lr=1e-6, epochs=1, **PLAIN)
    losses = fine_tune(nets[framework], data, None, recipe, progress=False).step_losses
    start = fine_tune(
        nets[framework], data, None, recipe.but(head_lr=1e-30), progress=False
    )
    for batch, loss in zip(Epoch(data, recipe, 0), losses, strict=True):
        logits, share = start.logits(batch["images"]), batch["own_share"][0]
        own = cross_entropy(logits, batch["labels"])
        partners = cross_entropy(logits, batch["partner_labels"])
        assert 0.5 <= share < 1 and abs(own - partners) > 1e-6
        assert loss == pytest.approx(share * own + (1 - share) * partners, abs=2e-3)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_mixed_run_that_was_interrupted_ends_with_the_same_bits(
    framework, nets, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRANSFER_COURSE_CHECKPOINT_SECONDS", "0")

    class Stopped(Exception):
        pass

    def stop(end):
        if end.epoch == 2:
            raise Stopped

    def tune(**how):
        return fine_tune(nets[framework], data, data, MIXED, progress=False, **how)

    (tmp_path / "whole").mkdir()
    once = tune(checkpoint=tmp_path / "whole")
    with pytest.raises(Stopped):
        tune(checkpoint=tmp_path, callbacks=[stop])
    again = tune(checkpoint=tmp_path, workers=2)
    assert not moved(snapshot(once.model), snapshot(again.model))
    assert once.step_losses == again.step_losses
    plain = fine_tune(nets[framework], data, data, MIXED.but(mixup=0.0), progress=False)
    assert moved(snapshot(once.model), snapshot(plain.model))


def test_a_mixed_batch_in_parts_makes_the_same_update_in_torch(nets, data, monkeypatch):
    from transfer_course.trainer.torch_step import Stepper

    recipe = MIXED.but(epochs=1, **PLAIN)
    whole = fine_tune(nets["torch"], data, None, recipe, progress=False)
    monkeypatch.setattr(Stepper, "parts", 3)
    parts = fine_tune(nets["torch"], data, None, recipe, progress=False)
    assert np.allclose(whole.step_losses, parts.step_losses, rtol=1e-4)
    a, b = (snapshot(result.model) for result in (whole, parts))
    assert all(np.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_a_mixed_batch_in_pieces_makes_the_same_update_in_keras(
    nets, data, monkeypatch
):
    from transfer_course.trainer import keras_step

    recipe = MIXED.but(epochs=1, **PLAIN)
    whole = fine_tune(nets["keras"], data, None, recipe, progress=False)
    monkeypatch.setattr(keras_step.Settings, "pieces", 3)
    make = keras_step.Settings.__init__
    monkeypatch.setattr(
        keras_step.Settings, "__init__", lambda self: make(self, pieces=3)
    )
    pieces = fine_tune(nets["keras"], data, None, recipe, progress=False)
    assert np.allclose(whole.step_losses, pieces.step_losses, rtol=1e-4)
    a, b = (snapshot(result.model) for result in (whole, pieces))
    assert all(np.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_activations_of_a_frozen_part_are_not_kept_while_images_are_mixed(data):
    from transfer_course.trainer.batches import Data
    from transfer_course.trainer.keras_frozen import _saves_work
    from transfer_course.trainer.recipe import plan
    from transfer_course.trainer.torch_frozen import pays

    recipe = Recipe("head", epochs=4)
    phase = plan(recipe, ("a", "b")).phases[0]
    for mixup, kept in ((0.0, True), (0.2, False)):
        mixed = recipe.but(mixup=mixup)
        assert pays(mixed, phase, [data]) is kept
        assert _saves_work(mixed, 4, Data(data)) is kept


def test_without_mirroring_left_stays_left():
    from transfer_course.vision.data import ImageDataset

    images = np.zeros((60, 16, 16, 3), np.uint8)
    images[:, :, :5] = 200
    data = ImageDataset(images, np.zeros(60, int), ["left"])

    def mirrored(**how):
        seen = Epoch(data, Recipe(batch_size=60, augment=1.0, **how), 0)[0]["images"]
        half = seen.astype(int).sum((1, 3)).reshape(60, 2, 8).sum(2)
        return int((half[:, 1] > half[:, 0]).sum())

    assert mirrored(mirror=False) == 0 and 15 <= mirrored() <= 45


# --- early stopping, recipes, logs ----------------------------------------------------


def test_patience_ends_a_run_in_its_last_phase_only(nets, data):
    recipe = Recipe("gradual", epochs=8, batch_size=16, lr=1e-12, patience=1)
    for net in nets.values():
        result = fine_tune(net, data, data, recipe, progress=False)
        assert len(result.history) == 7, "three phases of two epochs, and one epoch"
        assert "no better validation score" in result.stopped
    best = Best(patience=1)
    best.begin(last=False)
    rows = [dict(valid_accuracy=0.5, valid_loss=1.0)] * 3
    assert all(best.offer(i, row, dict) for i, row in enumerate(rows))
    best.begin(last=True)
    assert not best.offer(4, rows[0], dict)


def test_a_recipe_in_a_file_is_the_recipe(tmp_path):
    for recipe in (Recipe(), MIXED, Recipe("gradual", class_weights=[1, 2], views=2)):
        assert from_yaml(to_yaml(recipe)) == recipe
    path = tmp_path / "mine.yaml"
    path.write_text("strategy: fine_tune\nlr: 1e-4\nepochs: 9\nmirror: no\n")
    assert read_recipe(path)["lr"] == 1e-4 and read_recipe(path)["mirror"] is False
    made = default_recipe(recipe=path, epochs=2)
    assert (made.strategy, made.epochs, made.lr) == ("fine_tune", 2, 1e-4)
    assert made.batch_size == default_recipe("fine_tune").batch_size
    path.write_text("# mine\nepochs: 3\nmix_up: 0.2\n")
    with pytest.raises(BadValue, match=r"line 3: a recipe has no 'mix_up'.*'mixup'"):
        read_recipe(path)
    path.write_text("epochs: 3\n\npatience: soon\n")
    with pytest.raises(BadValue, match="line 3: patience is 'soon'; expected a whole"):
        read_recipe(path)


def test_a_recipe_of_an_earlier_version_is_read():
    from transfer_course.trainer.result import rebuild

    old = Recipe().to_dict()
    del old["mixup"], old["mirror"]
    config = {"name": "small_cnn", "seed": 0}
    info = dict(backbone={"config": config}, recipe=old, framework="torch")
    assert rebuild(info | {"classes": ["a", "b"]})[1]["recipe"] == Recipe()


def test_the_history_of_a_resumed_run_has_no_row_twice(nets, data, tmp_path):
    class Stopped(Exception):
        pass

    def stop(end):
        if end.epoch == 2:
            raise Stopped  # after the log, before the checkpoint

    def tune(*more, **how):
        with logging_runs.log_of("csv", tmp_path) as logs:
            return fine_tune(
                nets["torch"],
                data,
                data,
                MIXED,
                progress=False,
                checkpoint=tmp_path,
                callbacks=(*logs, *more),
            )

    with pytest.raises(Stopped):
        tune(stop)
    tune()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_log_whose_package_is_missing_is_told_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r"transfer_course\[log\]"):
        logging_runs.check_log("tensorboard")


# --- the command ----------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_options_reach_the_run_and_its_recipe_repeats_it(framework, folder, tmp_path):
    out = tmp_path / "run"
    base = "fine-tune", folder, "--framework", framework, "--size", 32, "--json"
    options = "--strategy head --epochs 3 --lr 0.01 --batch-size 8 --augment 0.2"
    options += " --mixup 0.3 --no-mirror --patience 3 --weight-decay 0 --log "
    log = {"torch": "tensorboard", "keras": "csv"}[framework]
    done = run(*base, *options.split(), log, "--out", out)
    info = json.loads((out / "run.json").read_text())
    chosen = dict(mixup=0.3, mirror=False, augment=0.2, batch_size=8, patience=3)
    chosen |= dict(head_lr=0.01, weight_decay=0.0, strategy="head", epochs=3)
    assert {k: info["recipe"][k] for k in chosen} == chosen
    assert "mirrored" not in done.stderr
    if framework == "keras":
        rows = list(csv.DictReader((out / "history.csv").open()))
        assert [float(r["loss"]) for r in rows] == [r["loss"] for r in info["history"]]
    else:
        assert list((out / "tensorboard").glob("events*"))
    again = tmp_path / "again"
    here(*base, "--recipe", out / "recipe.yaml", "--epochs", 1, "--out", again)
    second = json.loads((again / "run.json").read_text())
    assert second["recipe"] == info["recipe"] | {"epochs": 1}


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_dry_run_tells_and_writes_nothing(framework, folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = run(
        "fine-tune", folder, "--framework", framework, "--dry-run", "--size", 32,
        "--strategy", "gradual", "--epochs", 4, "--train-from", "stage7",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    found = last(done)
    assert found["dry_run"] and len(found["phases"]) == 4
    assert found["phases"][0]["stages"] == [] and found["phases"][0]["lr"] is None
    assert found["phases"][-1]["stages"] == ["stage7", "top"]
    assert found["steps"] == 4 * found["steps_per_epoch"] == 4 * 2
    assert 0 < found["seconds"]["training"] < found["seconds"]["total"]
    assert "nothing was trained or written" in done.stderr
    assert "mirrored" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--train-from stage33", "this backbone's stages are stem, stage1"),
        ("--mixup -1", "mixup is -1.0; it has to be a number of at least 0"),
        ("--augment 2", "augment is 2.0; it has to be at most 1"),
        ("--patience 0", "patience is 0; it has to be a whole number above 0"),
        ("--lr 0", "lr is 0.0; it has to be a number above 0"),
        ("--log tensorbord", "Did you mean 'tensorboard'?"),
        ("--recipe nowhere.yaml", "There is no file nowhere.yaml"),
        ("--keep all", "--keep is for a run that starts from another"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, words, folder, tmp_path):
    out = tmp_path / "run"
    given = ("--size", 32, "--strategy", "fine_tune", *options.split(), "--out", out)
    done = here("fine-tune", folder, *given, code=2)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error:") and words in line
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_it_goes_on(number, folder, tmp_path):
    out = tmp_path / "my run"
    options = ("--strategy", "head", "--epochs", 500, "--size", 32, "--out", out)
    process = subprocess.Popen(
        [*COMMAND, "fine-tune", str(folder), *map(str, options)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs in the background with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "checkpoint.safetensors").exists():
        time.sleep(0.02)
        assert process.poll() is None
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in told
    said = told.strip().splitlines()[-1]
    assert "Stopped." in said and f"--out '{out}' --resume" in said
