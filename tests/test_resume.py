"""A run that is killed, a memory that ends, a loss that is no number, two processes.

Nothing is lost, and the bits are the same.
"""

import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from kill import (
    RUN_FILES,
    digest,
    environment,
    finish,
    kill_after,
    killed_often,
    small_folder,
    start,
)

from transfer_course.engine.checkpoints import NAME
from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_torch
from transfer_course.trainer import torch_frozen
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer.torch_frozen import Kept
from transfer_course.trainer.torch_phase import PhaseSetup
from transfer_course.trainer.torch_step import Stepper
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import styles
from transfer_course.vision.finetune_torch import thaw
from transfer_course.vision.freezing import moved, snapshot

torch = load_torch()
TINY = ("--strategy", "fine_tune", "--size", 32, "--epochs", 3, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("data") / "things")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The uninterrupted run: its folder, and how many seconds it took."""
    out, began = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    finish(start("fine-tune", folder, *TINY, "--out", out))
    seconds = time.monotonic() - began
    assert json.loads((out / "run.json").read_text())["best_epoch"] >= 2, (
        "the kept weights are trained ones"
    )
    return out, seconds


def killed(folder, whole, tmp_path, kills, seed):
    out, hits, writes = tmp_path / "run", 0, 0
    for counts in killed_often(
        ("fine-tune", folder, *TINY), out, kills, whole[1], seed
    ):
        hits, writes = counts
        assert digest(out / "model.safetensors") == digest(
            whole[0] / "model.safetensors"
        ), "the same bits as the run that was never killed"
        left = {p.name for p in out.iterdir()}
        assert left == RUN_FILES | {"model.safetensors"}, (
            "nothing is left of the killed ones"
        )
    assert hits == kills
    return writes


def test_five_kills_and_the_same_bits(folder, whole, tmp_path):
    killed(folder, whole, tmp_path, 5, seed=0)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_hundred_kills_and_the_same_bits(folder, whole, tmp_path, seed):
    assert killed(folder, whole, tmp_path, 20, seed), (
        "at least one kill in the midst of writing"
    )


def test_a_finished_run_is_given_back_and_a_running_one_refused(
    folder, whole, tmp_path
):
    before = digest(whole[0] / "run.json")
    out, _ = finish(start("fine-tune", folder, *TINY, "--out", whole[0], "--resume"))
    assert (
        json.loads(out)["run"] == str(whole[0])
        and digest(whole[0] / "run.json") == before
    )
    first = start("fine-tune", folder, *TINY, "--out", tmp_path / "run", "--resume")
    while not (tmp_path / "run" / NAME).exists():
        time.sleep(0.01)
        assert first.poll() is None
    _, err = finish(
        start("fine-tune", folder, *TINY, "--out", tmp_path / "run", "--resume"), code=2
    )
    assert "is being written by another process" in err
    assert kill_after(first, 0)
    _, err = finish(
        start("fine-tune", folder, *TINY, "--out", tmp_path / "run"), code=2
    )
    assert "--resume" in err, "without the word an interrupted run is not touched"
    (next(folder.glob("bird/*.png"))).with_name("new.png").write_bytes(
        next(folder.glob("drink/*.png")).read_bytes()
    )
    try:
        _, err = finish(
            start("fine-tune", folder, *TINY, "--out", tmp_path / "run", "--resume"),
            code=2,
        )
        assert "begun with different held out images" in err
    finally:
        (folder / "bird" / "new.png").unlink()


# --- in one process -------------------------------------------------------------------


def test_a_finished_run_is_given_back_for_its_own_images_only(tmp_path):
    from PIL import Image

    from transfer_course.practice.own_folder import tune_folder
    from transfer_course.practice.predicting import predict_files

    rng, said, out = np.random.default_rng(0), [], tmp_path / "run"

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)

    def again(folder):
        said.clear()
        how = dict(
            backbone="small_cnn", strategy="probe", size=32, progress=False, resume=True
        )
        return {
            k: v
            for k, v in tune_folder(folder, out, say=said.append, **how).items()
            if k != "seconds"
        }

    def refused(folder, words):
        with pytest.raises(
            BadValue, match="holds a finished run on other images than those in"
        ) as e:
            again(folder)
        assert (
            words in str(e.value)
            and "--out" in str(e.value)
            and not [line for line in said if "accuracy" in line]
        )

    for path in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "dog/3"):
        save(tmp_path / "photos" / f"{path}.png")
        save(tmp_path / "others" / f"{path}.png")
    first = again(tmp_path / "photos")
    assert again(tmp_path / "photos") == first and any(
        "nothing was trained" in line for line in said
    )
    refused(tmp_path / "others", "as many as then, but some have another content")
    photos = tmp_path / "moved" / "pictures"
    photos.parent.mkdir()
    (tmp_path / "photos").rename(photos)
    (photos / "cat/1.png").rename(photos / "cat/9.png")
    assert again(photos) == first, "the same images elsewhere, under another name"
    save(photos / "fox/1.png")
    refused(photos, "class 'fox' is new")
    (photos / "fox/1.png").rename(photos / "dog/4.png")
    (photos / "fox").rmdir()
    refused(photos, "class 'dog' had 3 images and has 4 now")
    (photos / "dog/4.png").unlink()
    (photos / "cat/9.png").rename(photos / "dog/9.png")
    (photos / "dog/1.png").rename(photos / "cat/1.png")
    refused(photos, "another content")
    (photos / "cat/1.png").rename(photos / "dog/1.png")
    (photos / "dog/9.png").rename(photos / "cat/9.png")
    assert again(photos) == first

    info = json.loads((out / "run.json").read_text())  # as an earlier version saved it
    assert len(info.pop("images_sha256")) == 64
    (out / "run.json").write_text(json.dumps(info))
    assert again(photos) == first and any("earlier version" in line for line in said)
    assert [set(row) for row in predict_files(out, [photos / "cat/2.png"])] == [
        {"path", "class", "probability", "top"}
    ]
    save(photos / "cat/8.png")
    refused(photos, "class 'cat' had 3 images and has 4 now")
    (photos / "cat/8.png").unlink()
    (out / "report.html").unlink()
    assert (
        again(photos) == first
        and not (out / "report.html").exists()
        and any("report is missing" in line for line in said)
    )


@pytest.fixture(scope="module")
def parts():
    data = styles("noto", size=32)
    return data.subset(np.arange(0, len(data), 8)).split(0.25, 0, seed=0)


@pytest.fixture(scope="module")
def net():
    return backbone("efficientnet_lite0", "torch")


class Stopped(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(
            epochs=2, batch_size=16, augment=0.5, optimizer="sgd", batch_norm="train"
        ),
        Recipe(epochs=4, batch_size=16, strategy="gradual", patience=3),
        Recipe(epochs=3, batch_size=16, strategy="head", augment=0.5, views=2),
    ],
    ids=lambda r: r.strategy,
)
def test_put_down_after_any_step_and_taken_up_again(
    net, parts, recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRANSFER_COURSE_CHECKPOINT_SECONDS", "0")
    once = fine_tune(net, parts.train, parts.valid, recipe, progress=False)
    step, taken = Stepper.step, []

    def tired(*args):
        taken.append(1)
        if len(taken) % 3 == 0:
            raise Stopped
        return step(*args)

    monkeypatch.setattr(Stepper, "step", tired)
    for _ in range(20):
        try:
            again = fine_tune(
                net,
                parts.train,
                parts.valid,
                recipe,
                progress=False,
                checkpoint=tmp_path,
                workers=2,
            )
            break
        except Stopped:
            pass
    assert (
        len(taken) >= 5
        and not moved(snapshot(once.model), snapshot(again.model))
        and once.step_losses == again.step_losses
    )

    def drop(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert (
        drop(once.history) == drop(again.history)
        and once.best_epoch == again.best_epoch
    )


def test_a_run_without_a_number_says_so_again(net, parts, tmp_path):
    wild = Recipe(
        epochs=3, batch_size=16, lr=1e-3, head_lr=1e38, optimizer="sgd", warmup=0.0
    )
    with pytest.warns(UserWarning, match="learning rate ten times smaller"):
        first = fine_tune(
            net, parts.train, parts.valid, wild, progress=False, checkpoint=tmp_path
        )
    again = fine_tune(
        net, parts.train, parts.valid, wild, progress=False, checkpoint=tmp_path
    )
    assert (
        "not a number" in first.stopped
        and again.stopped == first.stopped
        and len(again.step_losses) == len(first.step_losses)
    )
    assert np.isfinite(again.predict(parts.valid)).all() and not moved(
        snapshot(first.model), snapshot(again.model)
    )


def test_where_memory_ends_the_batch_is_halved_and_the_update_is_the_same(
    net, parts, monkeypatch
):
    recipe, loss, most = Recipe(epochs=1, batch_size=16), Stepper.loss, 5

    def hungry(steps, batch):
        if len(batch["labels"]) > most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 1 bytes."
            )
        return loss(steps, batch)

    once = fine_tune(net, parts.train, None, recipe, progress=False)
    monkeypatch.setattr(Stepper, "loss", hungry)
    with pytest.warns(UserWarning, match="Memory ran out") as said:
        halves = fine_tune(net, parts.train, None, recipe, progress=False)
    assert len(said) == 2, "16 -> 8 -> 4, said each time and never again"
    assert np.allclose(once.step_losses, halves.step_losses, rtol=1e-3)
    most = 0
    with pytest.raises(BadValue, match="single image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fine_tune(net, parts.train, None, recipe, progress=False)


def test_the_frozen_part_runs_once_and_the_result_is_the_plain_one(
    net, parts, monkeypatch
):
    for recipe in (
        Recipe(epochs=3, batch_size=16, train_from="stage6", lr=1e-3),
        Recipe(
            epochs=4,
            batch_size=16,
            strategy="head",
            augment=0.5,
            views=2,
            optimizer="sgd",
        ),
    ):
        seen, on_device = [], torch_frozen.on_device
        monkeypatch.setattr(
            torch_frozen,
            "on_device",
            lambda n, x, d: (seen.append(len(x)), on_device(n, x, d))[1],  # noqa: B023
        )
        fast = fine_tune(net, parts.train, parts.valid, recipe, progress=False)
        images = len(parts.train) * (recipe.views or 1) + len(parts.valid) + 1
        assert sum(seen) == images, (
            "each version of each image goes through the frozen part once"
        )
        with monkeypatch.context() as m:
            m.setattr(PhaseSetup, "keep", lambda *a, **k: None)
            plain = fine_tune(net, parts.train, parts.valid, recipe, progress=False)
        assert np.allclose(fast.step_losses, plain.step_losses, rtol=2e-3)
        monkeypatch.setattr(torch_frozen, "on_device", on_device)


@pytest.mark.parametrize("kept", [True, False])
def test_a_frozen_part_that_a_callback_thaws_learns_also_after_a_kill(
    net, parts, kept, tmp_path, monkeypatch
):
    """Whether its activations were kept or not."""
    if not kept:
        monkeypatch.setattr(PhaseSetup, "keep", lambda *a, **k: None)
    recipe = Recipe(
        epochs=4,
        batch_size=16,
        train_from="stage6",
        lr=1e-3,
        optimizer="sgd",
        schedule="constant",
    )

    def open_up(end):
        if end.epoch == 2:
            thaw(end.result.backbone.model, ["blocks.4."])

    def tune(*more, **how):
        return fine_tune(
            net,
            parts.train,
            None,
            recipe,
            callbacks=[open_up, *more],
            progress=False,
            **how,
        )

    once, name = tune(), "blocks.4.0.conv_pw.weight"
    start = net.model.state_dict()[name]
    assert not torch.equal(once.backbone.model.state_dict()[name], start)
    assert float(
        (
            once.backbone.model.state_dict()["blocks.4.0.bn1.running_mean"]
            - net.model.state_dict()["blocks.4.0.bn1.running_mean"]
        )
        .abs()
        .max()
    )

    def gone(end):
        if end.epoch == 3:
            raise Stopped

    with pytest.raises(Stopped):
        tune(gone, checkpoint=tmp_path)
    assert not moved(snapshot(once.model), snapshot(tune(checkpoint=tmp_path).model))


def test_whether_the_frozen_part_is_kept_is_not_decided_anew(
    net, parts, tmp_path, monkeypatch
):
    recipe, asked = Recipe(epochs=3, batch_size=16, train_from="stage6", lr=1e-3), []
    fits = Kept.fits
    once = fine_tune(net, parts.train, parts.valid, recipe, progress=False)

    def gone(end):
        if end.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fine_tune(
            net,
            parts.train,
            parts.valid,
            recipe,
            progress=False,
            checkpoint=tmp_path,
            callbacks=[gone],
        )
    monkeypatch.setattr(
        Kept,
        "fits",
        lambda self, data, n, room=True: (
            asked.append(room),
            not room and fits(self, data, n, room),
        )[1],
    )
    again = fine_tune(
        net, parts.train, parts.valid, recipe, progress=False, checkpoint=tmp_path
    )
    assert asked == [False] and not moved(snapshot(once.model), snapshot(again.model))


def test_a_large_second_set_is_not_kept(net, parts, monkeypatch):
    """An epoch takes as many of its images as of the first set.

    All of them would be more work, not less.
    """
    seen, keep = [], PhaseSetup.keep
    monkeypatch.setattr(
        PhaseSetup,
        "keep",
        lambda *a, **k: (seen.append(keep(*a, **k)), seen[-1])[1],
    )
    recipe = Recipe(epochs=2, batch_size=8, train_from="top", lr=1e-3)
    few = parts.train.subset(np.arange(8))
    fine_tune(net, few, None, recipe, source=parts.train, progress=False)
    fine_tune(net, parts.train, None, recipe, source=few, progress=False)
    assert [k is None for k in seen] == [True, False]


def test_gradient_checkpointing_goes_together_with_folding(net, parts):
    import copy

    recipe = Recipe(epochs=1, batch_size=16, optimizer="sgd", lr=1e-3)
    thrifty = copy.copy(net)
    thrifty.model = copy.deepcopy(net.model)
    thrifty.model.set_grad_checkpointing(True)
    a, b = (
        fine_tune(n, parts.train, None, recipe, progress=False) for n in (net, thrifty)
    )
    assert np.allclose(a.step_losses, b.step_losses, rtol=1e-3)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=2, batch_size=16, augment=0.5),
        Recipe("lp_ft", epochs=1, batch_size=16),
    ],
    ids=lambda r: r.strategy,
)
def test_the_same_seed_gives_the_same_bits(net, parts, recipe):
    first, second = (
        snapshot(
            fine_tune(net, parts.train, None, recipe, progress=False, workers=n).model
        )
        for n in (1, 2)
    )
    assert not moved(first, second)
    assert moved(
        first,
        snapshot(
            fine_tune(net, parts.train, None, recipe.but(seed=1), progress=False).model
        ),
    ), "another seed, other bits"


# --- several processes ----------------------------------------------------------------


def torchrun(*args, env=None):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(29500 + os.getpid() % 1000),
    ]
    return subprocess.run(
        [*command, "-m", "transfer_course.cli", *map(str, args)],
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_two_processes_end_where_one_does(folder, whole, tmp_path):
    done = torchrun("fine-tune", folder, *TINY, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1, "only the first process talks"
    one, two = (
        json.loads((p / "run.json").read_text()) for p in (whole[0], tmp_path / "two")
    )
    assert one["metrics"]["accuracy"] == two["metrics"]["accuracy"]
    for a, b in zip(one["history"], two["history"], strict=True):
        assert np.allclose(
            [a["loss"], a["valid_loss"], a["accuracy"]],
            [b["loss"], b["valid_loss"], b["accuracy"]],
            rtol=2e-3,
            atol=1e-4,
        )
    from safetensors.numpy import load_file

    a, b = (load_file(p / "model.safetensors") for p in (whole[0], tmp_path / "two"))
    assert max(np.abs(a[k] - b[k]).max() for k in a) < 1e-3
