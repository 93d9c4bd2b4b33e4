"""A run that starts from a saved one: classes by name, kept ones, and forgetting."""

import json

import numpy as np
import pytest
from kill import digest, kill_after, small_folder, start
from test_cli import here
from test_options import last, run

from transfer_course.engine.checkpoints import NAME
from transfer_course.engine.errors import BadValue
from transfer_course.practice.starting_from import (
    Start,
    continued_head,
    head_of,
    sort_classes,
)
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.data import styles

QUICK = ("--size", 32, "--json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of the old classes, and of two of them with a new one."""
    root = tmp_path_factory.mktemp("data")
    return (
        small_folder(root / "old", ("bird", "drink", "face"), 10),
        small_folder(root / "new", ("bird", "drink", "music"), 10),
    )


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """A small run in each framework."""
    out = tmp_path_factory.mktemp("runs")
    for name in ("torch", "keras"):
        given = ("--framework", name, "--strategy", "lp_ft", "--epochs", 1)
        run("fine-tune", folders[0], *given, *QUICK, "--out", out / name)
    return {name: out / name for name in ("torch", "keras")}


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_class_is_added_and_forgetting_is_reported(
    framework, runs, folders, tmp_path
):
    out, old = tmp_path / "run", folders[0]
    given = ("--from", runs[framework], "--keep", "face", "--old-images", old)
    done = run("fine-tune", folders[1], *given, "--epochs", 1, "--json", "--out", out)
    info = json.loads((out / "run.json").read_text())
    before = json.loads((runs[framework] / "run.json").read_text())
    assert info["framework"] == framework, "the run's own, without an option"
    assert info["size"] == before["size"] == 32
    assert info["strategy"] == "fine_tune"
    assert info["classes"] == ["bird", "drink", "music", "face"]
    about = info["from"]
    assert about["model_sha256"] == before["model_sha256"]
    assert about["classes"] == {
        "both": ["bird", "drink"],
        "new": ["music"],
        "kept": ["face"],
        "dropped": [],
    }
    assert set(about["forgetting"]["classes"]) == {"bird", "drink"}
    assert set(about["old_images"]["classes"]) == {"bird", "drink", "face"}
    assert about["old_images"]["n"] == 30
    difference = about["old_images"]["difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert last(done)["from"] == about
    told = "Forgetting, on 30 images of --old-images"
    assert told in (out / "report.html").read_text()
    assert told in (out / "card.md").read_text().replace("\\", "")
    assert "forgetting, on" in done.stderr and "kept, without images" in done.stderr
    result = load_result(out)
    assert result.predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4)


def test_what_is_not_kept_is_dropped_and_told(runs, folders, tmp_path):
    out = tmp_path / "run"
    given = ("--from", runs["torch"], "--strategy", "head", "--epochs", 1)
    done = here("fine-tune", folders[1], *given, "--json", "--out", out)
    assert json.loads((out / "run.json").read_text())["classes"] == [
        "bird",
        "drink",
        "music",
    ]
    assert "dropped, because the folder has no such class: face" in done.stderr


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_old_rows_stay_where_nothing_is_trained_yet(framework, runs, folders):
    old = load_result(runs[framework])
    data = styles("twemoji", size=32).only(["bird", "music", "drink"])
    data = data.subset(slice(None, None, 4))
    weights, biases = head = continued_head(old, data)
    mine = head_of(old)
    for now, then in ((0, 0), (2, 1)):
        assert np.array_equal(weights[:, now], mine[0][:, then])
        assert biases[now] == mine[1][then]
    recipe = Recipe("head", epochs=1, head_lr=1e-30, weight_decay=0.0)
    result = fine_tune(old.backbone, data, None, recipe, head=head, progress=False)
    logits = old.backbone.features(data.images) @ weights + biases
    assert np.allclose(result.logits(data), logits, atol=1e-3)
    before = old.logits(data)[:, :2]
    assert np.allclose(result.logits(data)[:, [0, 2]], before, atol=1e-3)
    new = data.labels == 1
    assert (logits.argmax(1)[new] == 1).mean() > 0.5, "the new class is known at once"


def test_a_head_that_does_not_fit_is_refused(runs):
    old = load_result(runs["torch"])
    data = styles("twemoji", size=32).subset(slice(None, None, 40))
    for recipe, head, words in (
        (Recipe("head"), head_of(old), "expected"),
        (Recipe("probe"), head_of(old), "does not start from a given head"),
        (Recipe("scratch"), head_of(old), "does not start from a given head"),
        (Recipe("auto"), head_of(old), "takes no starting head"),
    ):
        with pytest.raises(BadValue, match=words):
            fine_tune(old.backbone, data, data, recipe, head=head, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--strategy auto", "can't start from a run"),
        ("--strategy probe", "can't start from a run"),
        ("--framework keras", "was trained with the framework 'torch'"),
        ("--backbone small_cnn", "was trained with the backbone"),
        ("--keep brid", "Did you mean 'bird'?"),
    ],
)
def test_a_wrong_start_is_one_sentence(options, words, runs, folders, tmp_path):
    given = ("--from", runs["torch"], *options.split(), "--out", tmp_path / "run")
    done = here("fine-tune", folders[1], *given, code=2)
    assert words in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_from_the_same_start_only(runs, folders, tmp_path):
    given = ("fine-tune", folders[1], "--from", runs["torch"], "--epochs", 3, "--json")
    here(*given, "--out", tmp_path / "whole")
    first = start(*given, "--out", tmp_path / "cut")
    while not (tmp_path / "cut" / NAME).exists():
        assert first.poll() is None
    assert kill_after(first, 0)
    resumed = ("--out", tmp_path / "cut", "--resume")
    other = ("--size", 32, "--epochs", 3, "--strategy", "fine_tune", "--json")
    told = here("fine-tune", folders[1], *other, *resumed, code=2).stderr
    assert "begun with different" in told
    here(*given, *resumed)
    whole, cut = (tmp_path / n / "model.safetensors" for n in ("whole", "cut"))
    assert digest(whole) == digest(cut)
    with pytest.raises(BadValue, match="did not start from"):
        Start(runs["keras"]).same(
            json.loads((tmp_path / "cut" / "run.json").read_text()), "cut"
        )


def test_names_are_sorted_by_what_becomes_of_them():
    found = sort_classes(["a", "b", "c", "d"], ["b", "e"], "all")
    assert found == (["b"], ["e"], ["a", "c", "d"], [])
    assert sort_classes(["a", "b"], ["b"], ["a"]).kept == ["a"]
    assert sort_classes(["all", "b"], ["b"], ["all"]).kept == ["all"]
