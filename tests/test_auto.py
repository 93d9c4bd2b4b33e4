"""`auto`: a probe and a fine-tuned network, and the one that the evidence supports.

The rule is tested with loops that are made up, the rest with the real ones.
"""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from kill import RUN_FILES, finish, small_folder, start
from test_resume import torchrun

from transfer_course.engine import frameworks
from transfer_course.engine.checkpoints import NAME
from transfer_course.engine.errors import BadValue
from transfer_course.practice import own_folder
from transfer_course.practice.own_folder import tune_folder
from transfer_course.practice.reading import default_size
from transfer_course.trainer import auto as module
from transfer_course.trainer.auto import PARTS, auto, best_rate, candidates
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import ImageDataset, styles

RECIPE = Recipe("auto", epochs=3, lr=1e-4, batch_size=8, label_smoothing=0.1, seed=4)


@pytest.fixture(scope="module")
def net():
    return backbone("small_cnn", "torch")


def images(n, seed=0, groups=None):
    """`n` images of two classes in turn."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return ImageDataset(pixels, np.arange(n) % 2, ["a", "b"], groups=groups)


class MadeUp:
    """A loop whose networks get the first so many images right, or those that we say.

    `tuned` is for the network after fine-tuning, `rates` the probability of the right
    class after the search with each rate.
    """

    def __init__(self, probe, tuned, rates=None, fails_at=None):
        self.probe, self.tuned, self.rates = probe, tuned, rates or {}
        self.fails_at, self.calls = fails_at, []
        self.best_epoch = 1

    def __call__(self, net, train, valid, recipe, **how):
        self.calls.append((recipe, valid is not None, how))
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        if recipe.strategy == "probe":
            return self.result(recipe, self.probe)
        if valid is None:
            sure = self.rates.get(f"{recipe.lr:g}", 0.5)
            return self.result(recipe, None, np.log(sure / (1 - sure)))
        return self.result(recipe, self.tuned)

    def result(self, recipe, right, margin=2.0):
        """A network that is right on the first `right` images, by `margin`."""

        def logits(data):
            which = np.arange(len(data)) < (len(data) if right is None else right)
            sign = np.where(which if np.ndim(right) == 0 else right, 1, -1)
            first = (data.labels == 0) * 2.0 - 1
            return np.stack([first * sign * margin, np.zeros(len(data))], 1)

        return SimpleNamespace(
            classes=["a", "b"],
            logits=logits,
            recipe=recipe,
            history=[dict(seconds=2.0, valid_accuracy=0.25, valid_loss=2.0)],
            best_epoch=self.best_epoch,
            info={},
            seconds=0.0,
        )


def chosen(net, loop, n=40, recipe=RECIPE, valid=True, **how):
    said = []
    sets = images(80), images(n, 1) if valid else None
    result = auto(loop, net, *sets, recipe, say=said.append, **how)
    return result, said


def test_a_clear_gain_is_kept_and_an_unclear_one_is_not(net):
    for tuned, kept in ((38, "lp_ft"), (31, "probe"), (30, "probe"), (20, "probe")):
        result, said = chosen(net, MadeUp(30, tuned))
        about = result.info["auto"]
        assert about["chosen"] == kept and result.recipe == RECIPE
        assert (about["probe"]["accuracy"], about["tuned"]["accuracy"]) == (
            0.75,
            tuned / 40,
        )
        name = {"lp_ft": "fine-tuned network", "probe": "probe"}[kept]
        assert said[-1] == about["why"] and f"The {name} is kept" in said[-1]
        assert said[0].startswith("probe 0.75 on the held-out images")
        assert (about["gain"]["low"] > 0) == (kept == "lp_ft")


def test_a_fine_tuning_that_only_did_worse_is_shown_as_it_was(net):
    loop = MadeUp(30, 30)
    loop.best_epoch = 0  # the loop went back to the weights it began with
    result, said = chosen(net, loop)
    tuned = result.info["auto"]["tuned"]
    assert (tuned["accuracy"], tuned["loss"]) == (0.25, 2.0)
    assert any("fine-tuned network 0.25 on the held-out" in text for text in said)
    assert "no epoch of fine-tuning was better" in said[-1]


def test_images_of_one_identity_count_together(net):
    """Six more images are right and two fewer; the six show one thing, or six."""
    probe, tuned = np.arange(40) >= 6, np.arange(40) < 38
    for groups, kept in ((range(40), "lp_ft"), ([0] * 6 + [*range(1, 35)], "probe")):
        valid = images(40, 1, [f"thing {i}" for i in groups])
        loop = MadeUp(probe, tuned)
        result = auto(loop, net, images(80), valid, RECIPE, progress=False)
        assert result.info["auto"]["chosen"] == kept


def test_class_weights_count_in_the_choice_too(net):
    """Five more images of one class are right, and seven fewer of the other."""
    probe = np.arange(40) >= 10  # the two classes take turns
    tuned = probe.copy()
    tuned[0:10:2], tuned[21:35:2] = True, False
    for weights, kept in ((None, "probe"), ((1.8, 0.2), "lp_ft")):
        recipe = RECIPE.but(class_weights=weights)
        loop = MadeUp(probe, tuned)
        result, said = chosen(net, loop, recipe=recipe)
        assert result.info["auto"]["chosen"] == kept, said
        assert all(call[0].class_weights == weights for call in loop.calls)
        assert ("weighted accuracy" in said[-1]) == (weights is not None)


def test_fine_tuning_is_skipped_only_where_nothing_could_win(net):
    for right, skipped in ((40, True), (39, True), (38, False)):
        loop = MadeUp(right, 40)
        result, said = chosen(net, loop)
        assert (len(loop.calls) == 1) == skipped
        assert ("Fine-tuning is skipped" in said[-1]) == skipped
        assert ("tuned" in result.info["auto"]) != skipped


def test_the_search_tries_three_rates_and_passes_the_recipe_on(net):
    loop = MadeUp(20, 30)
    chosen(net, loop, recipe=RECIPE.but(head_lr=1e-3), workers=3)
    probe, *short, tuned = loop.calls
    assert probe[0] == RECIPE.but(strategy="probe", head_lr=1e-3)
    assert [r.lr for r, _, _ in short] == [3e-5, 1e-4, 3e-4]
    assert [r.head_lr for r, _, _ in short] == pytest.approx([3e-4, 1e-3, 3e-3])
    assert not any(held_out for _, held_out, _ in short) and tuned[1]
    assert [r.epochs for r, _, _ in loop.calls[1:]] == [2, 2, 2, 3]
    assert all(how["workers"] == 3 for _, _, how in loop.calls)
    same = {"strategy", "lr", "head_lr", "epochs"}
    for recipe, _, _ in loop.calls:
        for key in set(RECIPE.to_dict()) - same:
            assert getattr(recipe, key) == getattr(RECIPE, key), key
    assert [r.epochs for r in candidates(RECIPE, 400)] == [1, 1, 1], "long epochs"
    odd = RECIPE.but(lr=1.2345e-4)
    assert chosen(net, MadeUp(20, 30), recipe=odd)[0].info["auto"]["tuned"]["lr"] == (
        odd.lr
    )
    assert [r.epochs for r in candidates(RECIPE.but(epochs=1), 80)] == [1, 1, 1]


def test_another_rate_is_used_only_if_it_is_clearly_better(net):
    for rates, used in (
        ({}, 1e-4),
        ({"0.0001": 0.6, "0.0003": 0.9, "3e-05": 0.8}, 3e-4),
        ({"0.0001": 0.6, "0.0003": 0.8, "3e-05": 0.9}, 3e-5),
        ({"0.0001": 0.9, "0.0003": 0.6, "3e-05": 0.6}, 1e-4),
    ):
        loop = MadeUp(20, 30, rates)
        result, said = chosen(net, loop)
        assert loop.calls[-1][0].lr == used == result.info["auto"]["tuned"]["lr"]
        assert any(f"learning rate {used:g} is used" in text for text in said)
    own, other = np.ones(60), np.where(np.arange(60) % 2, 0.5, 1.45)
    assert best_rate({"1": own, "2": other}, "1") == "1", "lower by 0.03 at ± 0.06"
    assert best_rate({"1": own, "2": other - 0.1}, "1") == "2"


def test_what_a_stopped_run_has_found_is_not_repeated(net, tmp_path):
    rates = {"0.0001": 0.6, "0.0003": 0.9, "3e-05": 0.8}
    once, _ = chosen(net, MadeUp(20, 30, rates))
    for fails_at, left in ((2, 5), (3, 4), (4, 3), (5, 2)):
        folder = tmp_path / str(fails_at)
        with pytest.raises(KeyboardInterrupt):
            chosen(net, MadeUp(20, 30, rates, fails_at), checkpoint=folder)
        loop = MadeUp(20, 30, rates)
        again, _ = chosen(net, loop, checkpoint=folder)
        assert len(loop.calls) == left, "the probe and what was not finished"

        def plain(result):
            text = json.dumps(result.info["auto"])
            return [p for p in text.split(", ") if "seconds" not in p]

        assert plain(again) == plain(once)
    with pytest.raises(BadValue, match="begun with different"):
        chosen(net, MadeUp(20, 30), recipe=RECIPE.but(seed=5), checkpoint=folder)


def test_without_held_out_images_a_fifth_chooses_and_all_are_used(net, tmp_path):
    for tuned, kept in ((16, "lp_ft"), (8, "probe")):
        loop = MadeUp(8, tuned)
        result, said = chosen(net, loop, valid=False, checkpoint=tmp_path / kept)
        recipe, held_out, how = loop.calls[-1]
        assert recipe.strategy == kept == result.info["auto"]["chosen"]
        assert not held_out and how["checkpoint"] == tmp_path / kept
        assert recipe.epochs == RECIPE.epochs and result.recipe == RECIPE
    few = images(2)
    result = auto(MadeUp(1, 1), net, few, None, RECIPE, progress=False)
    assert result.info["auto"]["chosen"] == "probe"


def test_it_says_what_it_does_not_take(net):
    for name in ("source", "unlabelled", "penalty"):
        with pytest.raises(BadValue, match=f"'auto' takes no {name}.* can't use it"):
            fine_tune(net, images(8), images(8), RECIPE, **{name: images(4)})
    from transfer_course.trainer.torch_loop import fine_tune as one_loop

    with pytest.raises(BadValue, match=r"Call transfer_course\.fine_tune"):
        one_loop(net, images(8), images(8), RECIPE, progress=False)


def test_all_processes_follow_the_first(net, monkeypatch):
    """Were the second process to see another probe, it still would not wait alone."""
    import accelerate.utils

    for place in (module, frameworks):
        monkeypatch.setattr(
            place,
            "processes",
            lambda: SimpleNamespace(num_processes=2, is_main_process=False),
        )
    sent = iter([False, [0.5] * 40, [0.5] * 40, [0.5] * 40, True])
    monkeypatch.setattr(
        accelerate.utils, "broadcast_object_list", lambda values: [next(sent)]
    )
    result, _ = chosen(net, MadeUp(40, 20))
    assert result.info["auto"]["chosen"] == "lp_ft"


# --- with the real loops --------------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_both_frameworks(framework, tmp_path):
    data = styles("noto", size=32)
    parts = data.subset(np.arange(0, len(data), 6)).split(valid=0.4, test=0, seed=0)
    net, said = backbone("small_cnn", framework), []
    recipe = Recipe("auto", epochs=1, lr=1e-3, batch_size=16)
    sets = net, parts.train, parts.valid
    result = fine_tune(*sets, recipe, say=said.append, progress=False)
    about = result.info["auto"]
    assert set(about["losses"]) == {"0.0003", "0.001", "0.003"}
    alone = fine_tune(*sets, recipe.but(strategy=about["chosen"]), progress=False)
    if about["chosen"] == "probe":
        assert np.array_equal(result.predict(parts.valid), alone.predict(parts.valid))
    accuracy = result.evaluate(parts.valid)["accuracy"]
    noted = about["tuned" if about["chosen"] == "lp_ft" else "probe"]
    assert accuracy == pytest.approx(noted["accuracy"])
    result.save(tmp_path / "run")
    again = load_result(tmp_path / "run")
    assert again.recipe == recipe and again.info["auto"]["why"] == said[-1]
    assert np.array_equal(again.predict(parts.valid), result.predict(parts.valid))


TINY = ("--backbone", "small_cnn", "--size", 32, "--epochs", 2, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    classes = ("drink", "bird", "face", "music", "clothing")
    return small_folder(tmp_path_factory.mktemp("data") / "things", classes, 10)


def without_seconds(run):
    """What `auto` noted, but for the time that it took."""
    about = json.loads((run / "run.json").read_text())["auto"]
    for name in ("probe", "tuned"):
        del about[name]["seconds"]
    return about


def killed_at(folder, run, framework, there):
    """Start a run and kill it as soon as `there()` holds."""
    args = ("fine-tune", folder, "--framework", framework, *TINY)
    process = start(*args, "--out", run, "--resume")
    while process.poll() is None and not there():
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (run / "run.json").exists(), "it ended before it was killed"


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_killed_in_the_search_and_in_the_tuning(folder, framework, tmp_path):
    """In Keras only in the search; test_keras_resume.py has the other."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    args = ("fine-tune", folder, "--framework", framework, *TINY)
    out, err = finish(start(*args, "--out", whole))
    about = json.loads(out)["auto"]
    assert about["why"] in err and "tuned" in about, "the probe makes mistakes"
    killed_at(folder, run, framework, (run / PARTS / "search" / NAME).exists)
    if framework == "torch":
        killed_at(folder, run, framework, (run / NAME).exists)
    finish(start(*args, "--out", run, "--resume"))
    assert without_seconds(run) == without_seconds(whole)
    files = {p.name for p in run.iterdir()}
    models = {"model.safetensors", "model.keras"} & files
    assert files - models == RUN_FILES
    if framework == "torch":
        weights = "model.safetensors"
        assert (run / weights).read_bytes() == (whole / weights).read_bytes()


def test_two_processes_choose_together(folder, tmp_path):
    done = torchrun("fine-tune", folder, *TINY, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1, "only the first process talks"
    assert done.stderr.count("probe 0.") + done.stderr.count("probe 1.") >= 1
    assert (tmp_path / "two" / "run.json").exists()


# --- the size, and what a person reads ------------------------------------------------


@pytest.mark.parametrize(
    "sides, expected",
    [
        ((20,), 32),
        ((72, 72, 90), 64),
        ((100, 300, 310), 224),
        ((4000,), 224),
        ((), 128),
    ],
)
def test_the_default_size_is_the_images_own(sides, expected, tmp_path):
    from PIL import Image

    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for i, side in enumerate(sides):
        Image.new("L", (side * 2, side)).save(tmp_path / "class" / f"{i}.png")
    assert default_size(tmp_path) == expected


def test_a_finished_run_keeps_its_size(folder, tmp_path, monkeypatch):
    how = dict(backbone="small_cnn", strategy="probe", progress=False)
    said = []
    first = tune_folder(folder, tmp_path / "run", say=said.append, **how)
    assert said[0] == "Images are read at 64 px, which is about their own size."
    monkeypatch.setattr(own_folder, "completed", lambda *a: pytest.fail("it looked"))
    again = tune_folder(folder, tmp_path / "run", resume=True, **how)
    assert again["accuracy"] == first["accuracy"]
    with pytest.raises(BadValue, match="with size 64, not 96"):
        tune_folder(folder, tmp_path / "run", resume=True, size=96, **how)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "note" not in info["metrics"], "nothing was chosen on the held-out images"


def test_report_and_card_show_both_candidates(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_hopeless", lambda *a: False)
    said, run = [], tmp_path / "run"
    how = dict(backbone="small_cnn", epochs=1, size=32, progress=False)
    summary = tune_folder(folder, run, say=said.append, **how)
    info = json.loads((run / "run.json").read_text())
    about = info["auto"]
    assert summary["auto"] == about and about["why"] in said
    compared = "difference" in info["baselines"]["probe"]
    assert compared == (about["chosen"] != "probe")
    assert "chose between the probe and fine-tuning" in info["metrics"]["note"]
    card, page = ((run / n).read_text() for n in ("card.md", "report.html"))
    for text in (card, page):
        assert "fine-tuned network" in text and "Learning rates tried" in text
        assert f"auto (chose {about['chosen']})".replace("_", "\\_") in text.replace(
            "lp_ft", "lp\\_ft"
        ).replace("\\\\", "\\")
        assert "flatters this number a little" in text
    assert "Probe or fine-tuning" in page
    said.clear()
    tune_folder(folder, run, say=said.append, resume=True, **how)
    assert about["why"] in said and any("nothing was trained" in s for s in said)
