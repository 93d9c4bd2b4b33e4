"""The two training loops.

Parity, frozen means frozen, the open doors (source, unlabelled, penalty, callbacks),
saved runs.
"""

import json
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue, Damaged, NotFound, UserMistake
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.trainer.recipe import Recipe, register_strategy
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.backbones import Backbone, backbone
from transfer_course.vision.data import ImageDataset, styles
from transfer_course.vision.freezing import assert_frozen, moved, snapshot
from transfer_course.vision.networks import copy_torch_to_keras

keras = load_keras()
torch = load_torch()
BOTH = ("torch", "keras")
# Rates at which plain gradient descent on these networks is stable: beyond it, rounding
# grows tenfold with every step.
PLAIN = Recipe(
    epochs=2,
    batch_size=8,
    optimizer="sgd",
    momentum=0.0,
    lr=0.01,
    head_lr=0.1,
    schedule="constant",
    warmup=0.0,
)
GENTLE = PLAIN.but(lr=1e-4, head_lr=1e-3)


@pytest.fixture(scope="module")
def images():
    data = styles("twemoji", size=64)
    return data.subset(np.flatnonzero(data.labels < 3)[::3]).only(data.classes[:3])


@dataclass
class Tiny(Backbone):
    """A network with BatchNorm that trains in a second, used like the real ones."""

    def __post_init__(self):
        self.preprocess = lambda x: self.turn((np.asarray(x, "float32") - 127) / 64)

    def turn(self, x):
        return (
            np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            if self.framework == "torch"
            else x
        )

    def features(self, images, batch_size=32):
        x = self.preprocess(images)
        if self.framework == "keras":
            return np.array(keras.ops.convert_to_numpy(self.model(x, training=False)))
        was = self.model.training
        with torch.no_grad():
            out = self.model.eval()(torch.from_numpy(x)).numpy()
        self.model.train(was)
        return out


@pytest.fixture(scope="module")
def tiny():
    """The same small network with BatchNorm and random weights in both frameworks."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 16, 5, stride=3)
    norm = torch.nn.BatchNorm2d(16, eps=1e-3)
    last = torch.nn.Conv2d(16, 32, 3, stride=2)
    pool = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    a = torch.nn.Sequential(
        OrderedDict(
            stem_conv=conv, stem_bn=norm, act=torch.nn.ReLU(), late_conv=last, pool=pool
        )
    ).eval()
    k, x = keras.layers, keras.Input((None, None, 3))
    y = k.ReLU()(
        k.BatchNormalization(epsilon=1e-3, momentum=0.9, name="stem_bn")(
            k.Conv2D(16, 5, strides=3, name="stem_conv")(x)
        )
    )
    b = keras.Model(
        x,
        k.GlobalAveragePooling2D()(
            k.ReLU()(k.Conv2D(32, 3, strides=2, name="late_conv")(y))
        ),
    )
    copy_torch_to_keras(a.state_dict(), b)
    common = dict(
        name="tiny",
        params=5200,
        feature_dim=32,
        stages={"stem": ("stem_",), "late": ("late_",)},
        licence="",
        source="",
    )
    return {
        "torch": Tiny(framework="torch", model=a, **common),
        "keras": Tiny(framework="keras", model=b, **common),
    }


@pytest.fixture(scope="module")
def lite0():
    return {f: backbone("efficientnet_lite0", f) for f in BOTH}


@pytest.fixture(scope="module")
def small():
    """The network without BatchNorm, the same random weights in both frameworks."""
    a = backbone("small_cnn", "torch", weights=None, seed=3)
    b = backbone("small_cnn", "keras", weights=None, seed=3)
    copy_torch_to_keras(a.model.state_dict(), b.model)
    return {"torch": a, "keras": b}


def spread(a, b, n=None):
    return np.abs(np.array(a.step_losses[:n]) - np.array(b.step_losses[:n])).max()


# --- one experiment, two frameworks ---------------------------------------------------


@pytest.mark.parametrize("which", ["lite0", "small", "tiny"])
def test_the_first_ten_losses_agree(which, request, images):
    nets = request.getfixturevalue(which)
    a, b = (
        fine_tune(
            nets[f], images, None, GENTLE if which == "lite0" else PLAIN, progress=False
        )
        for f in BOTH
    )
    assert len(a.step_losses) == len(b.step_losses) >= 10
    assert spread(a, b, 10) < 1e-3
    assert np.mean(a.step_losses[-4:]) < np.mean(a.step_losses[:4]), (
        "nothing was learned, so agreeing means little"
    )
    assert a.trainable == b.trainable > 0


@pytest.mark.parametrize(
    "changes",
    [
        dict(
            optimizer="adamw",
            lr=1e-3,
            head_lr=1e-2,
            weight_decay=0.1,
            label_smoothing=0.1,
            schedule="cosine",
            warmup=0.3,
        ),
        dict(momentum=0.9, weight_decay=0.01, augment=0.5),
        dict(strategy="gradual", epochs=3, optimizer="adamw", lr=1e-4, head_lr=1e-3),
        dict(strategy="head", optimizer="adamw", head_lr=1e-3),
        dict(strategy="fine_tune", train_from="stage3"),
    ],
    ids=lambda c: "-".join(map(str, list(c.values())[:2])),
)
def test_the_rest_of_the_recipe_means_the_same_in_both(changes, small, images):
    a, b = (
        fine_tune(small[f], images, images, PLAIN.but(**changes), progress=False)
        for f in BOTH
    )
    assert spread(a, b) < 2e-3
    assert a.trainable == b.trainable
    assert [r["valid_accuracy"] for r in a.history] == pytest.approx(
        [r["valid_accuracy"] for r in b.history], abs=0.05
    )


def test_batch_statistics_move_alike(tiny, images):
    a, b = (
        fine_tune(
            tiny[f],
            images,
            None,
            PLAIN.but(batch_norm="train", epochs=1),
            progress=False,
        )
        for f in BOTH
    )
    assert spread(a, b) < 5e-3
    assert np.abs(a.logits(images) - b.logits(images)).max() < 0.05


# --- frozen means frozen --------------------------------------------------------------


@pytest.mark.parametrize("framework", BOTH)
@pytest.mark.parametrize("which", ["lite0", "small", "tiny"])
@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN.but(strategy="head"),
        PLAIN.but(optimizer="adamw", strategy="head", weight_decay=0.5),
    ],
)
def test_head_leaves_every_tensor_of_the_body(
    framework, which, recipe, request, images
):
    if which == "lite0" and recipe.optimizer == "adamw":
        pytest.skip("the large network with one optimiser is enough")
    net = request.getfixturevalue(which)[framework]
    before = snapshot(net.model)
    result = fine_tune(net, images, images, recipe, progress=False)
    assert assert_frozen(before, snapshot(result.backbone.model)) == len(before)
    assert result.trainable == (net.feature_dim + 1) * 3
    assert moved(before, snapshot(net.model)) == [], "the passed backbone was changed"


@pytest.mark.parametrize("framework", BOTH)
def test_train_from_freezes_what_lies_before(framework, tiny, images):
    net = tiny[framework]
    before = snapshot(net.model)
    result = fine_tune(
        net,
        images,
        None,
        PLAIN.but(train_from="late", weight_decay=0.1),
        progress=False,
    )
    after, names = snapshot(result.backbone.model), list(net.stages)
    early = [p for s in names[: names.index("late")] for p in net.stages[s]]
    late = [p for s in names[names.index("late") :] for p in net.stages[s]]
    assert assert_frozen(before, after, early) >= 6
    changed = moved(before, after)
    assert any(n.startswith(tuple(late)) for n in changed)
    assert not any(k in n for n in changed for k in ("running", "moving", "bn")), (
        "BatchNorm moved though it should be frozen"
    )


@pytest.mark.parametrize("framework", BOTH)
def test_batch_norm_train_moves_its_buffers(framework, tiny, images):
    before = snapshot(tiny[framework].model)
    result = fine_tune(
        tiny[framework],
        images,
        None,
        PLAIN.but(epochs=1, batch_norm="train"),
        progress=False,
    )
    changed = moved(before, snapshot(result.backbone.model))
    assert any("running_mean" in n or "moving_mean" in n for n in changed)


@pytest.mark.parametrize("framework", BOTH)
def test_freezing_in_the_middle_of_a_run_holds(framework, tiny, images):
    """Done in a callback, as a user would.

    By then the optimizer is built and its moments are warm.
    """
    from transfer_course.vision import finetune_keras, finetune_torch

    module, taken = {"torch": finetune_torch, "keras": finetune_keras}[framework], {}

    def stop_the_stem(end):
        if end.epoch == 1:
            module.freeze(end.result.backbone.model, tiny[framework].stages["stem"])
            taken.update(snapshot(end.result.backbone.model))

    recipe = PLAIN.but(epochs=3, optimizer="adamw", weight_decay=0.1, lr=1e-3)
    result = fine_tune(
        tiny[framework], images, None, recipe, callbacks=[stop_the_stem], progress=False
    )
    after = snapshot(result.backbone.model)
    assert_frozen(taken, after, tiny[framework].stages["stem"])
    assert any(
        n.startswith(tuple(tiny[framework].stages["late"])) for n in moved(taken, after)
    )


def test_torch_freeze_after_the_optimiser_was_built(lite0):
    from transfer_course.vision.finetune_torch import freeze, thaw

    net = backbone("efficientnet_lite0", "torch").model
    thaw(net)
    optimiser = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
    )
    x = torch.randn(4, 3, 64, 64)
    net.train()
    net(x).sum().backward()
    optimiser.step()
    freeze(net)
    before = snapshot(net)
    net.train()  # what a training loop does every epoch
    assert not net(x).requires_grad
    optimiser.step()
    assert assert_frozen(before, snapshot(net)) == len(before)


def test_keras_freeze_after_compile(tiny, images):
    from transfer_course.vision.finetune_keras import freeze

    body = keras.models.clone_model(tiny["keras"].model)
    model = keras.Sequential([body, keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = images.images[:8].astype("float32") / 255, images.labels[:8]
    model.fit(x, y, verbose=0)
    freeze(model, [layer.name for layer in body.layers])
    before = snapshot(body)
    model.fit(x, y, verbose=0)
    assert assert_frozen(before, snapshot(body)) == len(before)


# --- the open doors -------------------------------------------------------------------


def l2_sp(framework, strength):
    """The squared distance to the start.

    Li, Grandvalet & Davoine 2018 (arXiv:1802.01483).
    """
    square = (
        (lambda t: (t**2).sum())
        if framework == "torch"
        else (lambda t: keras.ops.sum(t**2))
    )
    return lambda step: (
        strength * sum(square(step.weights[k] - w) for k, w in step.start.items())
    )


def distance(before, result):
    after = snapshot(result.backbone.model)
    return np.sqrt(sum(float(((after[k] - v) ** 2).sum()) for k, v in before.items()))


@pytest.mark.parametrize("framework", BOTH)
def test_a_penalty_towards_the_start_keeps_the_weights_near_it(
    framework, small, images
):
    before = snapshot(small[framework].model)
    # lr * strength has to stay below 1, or descent on the penalty itself overshoots
    free, held = (
        distance(
            before,
            fine_tune(
                small[framework],
                images,
                None,
                PLAIN.but(epochs=4),
                penalty=p,
                progress=False,
            ),
        )
        for p in (None, l2_sp(framework, 5.0))
    )
    assert 0 < held < 0.8 * free


def test_the_penalty_is_the_same_number_in_both(small, images):
    a, b = (
        fine_tune(small[f], images, None, PLAIN, penalty=l2_sp(f, 1.0), progress=False)
        for f in BOTH
    )
    assert spread(a, b) < 1e-3


@pytest.mark.parametrize("same_classes", [True, False])
def test_the_joint_objective_learns_both(same_classes, small, images):
    source = styles("openmoji", size=64)
    source = source.subset(np.flatnonzero(source.labels < 3)).only(source.classes[:3])
    if not same_classes:
        source = ImageDataset(source.images, source.labels % 2, ["even", "odd"])
    # the objective is three times as steep as the target's alone: a third of the rates
    # is as stable
    recipe = PLAIN.but(source_weight=2.0, lr=PLAIN.lr / 3, head_lr=PLAIN.head_lr / 3)
    results = [
        fine_tune(small[f], images, None, recipe, source=source, progress=False)
        for f in BOTH
    ]
    assert spread(*results) < 1e-3
    alone = fine_tune(small["torch"], images, None, PLAIN, progress=False)
    # ln 2 or ln 3, twice, on top of the target's.
    assert results[0].step_losses[0] > alone.step_losses[0] + 1.0
    assert results[0].logits(images).shape == (len(images), 3)


@pytest.mark.parametrize("framework", BOTH)
def test_an_unlabelled_set_reaches_the_penalty(framework, small, images):
    shapes = []

    def gap(step):
        shapes.append(
            tuple(step.unlabelled_features.shape[1:])
            + tuple(step.unlabelled_logits.shape[1:])
        )
        mean = (
            (lambda t: t.mean(0))
            if framework == "torch"
            else (lambda t: keras.ops.mean(t, axis=0))
        )
        d = mean(step.features) - mean(step.unlabelled_features)
        return 0.01 * ((d**2).sum() if framework == "torch" else keras.ops.sum(d**2))

    other = ImageDataset(255 - images.images, np.full(len(images), -1), images.classes)
    with_gap = fine_tune(
        small[framework],
        images,
        None,
        PLAIN,
        unlabelled=other,
        penalty=gap,
        progress=False,
    )
    without = fine_tune(small[framework], images, None, PLAIN, progress=False)
    assert shapes and shapes[0] == (256, 3)

    def apart(result):
        f = result.backbone.features
        return np.square(f(images.images).mean(0) - f(other.images).mean(0)).sum()

    assert apart(with_gap) < 0.9 * apart(without)


@pytest.mark.parametrize("framework", BOTH)
def test_callbacks_see_every_epoch_and_can_stop(framework, small, images):
    seen = []

    def watch(end):
        seen.append((end.epoch, end.row["loss"], end.result.predict(images).shape))
        if end.epoch == 2:
            end.stop("enough seen")

    result = fine_tune(
        small[framework],
        images,
        images,
        PLAIN.but(epochs=5),
        callbacks=[watch],
        progress=False,
    )
    assert (
        [s[0] for s in seen] == [1, 2]
        and len(result.history) == 2
        and result.stopped == "enough seen"
    )


@pytest.mark.parametrize("framework", BOTH)
def test_a_strategy_of_ones_own(framework, small, images):
    from transfer_course.trainer.recipe import _STRATEGIES, Phase, Plan

    @register_strategy("last_stage_then_all")
    def mine(recipe, stages):
        return Plan(
            (
                Phase(1, stages[-1:], recipe.lr, recipe.lr),
                Phase(1, stages, recipe.lr, recipe.lr),
            )
        )

    try:
        seen = []
        fine_tune(
            small[framework],
            images,
            None,
            PLAIN.but(strategy="last_stage_then_all"),
            callbacks=[lambda e: seen.append(e.row)],
            progress=False,
        )
        assert [r["trainable"] for r in seen] == sorted(
            r["trainable"] for r in seen
        ) and seen[0]["trainable"] < seen[1]["trainable"]
    finally:
        del _STRATEGIES["last_stage_then_all"]


# --- keeping the best, stopping, diverging --------------------------------------------


@pytest.mark.parametrize("framework", BOTH)
def test_the_best_weights_are_kept_and_patience_ends_the_run(framework, small, images):
    """The validation labels are wrong on purpose.

    Training only makes the loss worse, so the weights before the first step win.
    """
    wrong = ImageDataset(images.images, (images.labels + 1) % 3, images.classes)
    before = snapshot(small[framework].model)
    recipe = PLAIN.but(epochs=9, lr=0.002, head_lr=0.002, patience=2, strategy="lp_ft")
    result = fine_tune(small[framework], images, wrong, recipe, progress=False)
    assert len(result.history) < 9 and "2 epochs" in result.stopped
    best = result.best_epoch
    if best == 0:
        assert moved(before, snapshot(result.backbone.model)) == []
    else:
        assert result.evaluate(wrong)["accuracy"] == pytest.approx(
            result.history[best - 1]["valid_accuracy"]
        )


@pytest.mark.parametrize("framework", BOTH)
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_good_weights(
    framework, small, images
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fine_tune(
            small[framework], images, None, PLAIN.but(lr=1e25, epochs=4), progress=False
        )
    assert "learning rate" in result.stopped and any(
        "last good weights" in str(w.message) for w in caught
    )
    assert np.isfinite(result.predict(images)).all() and len(result.history) < 4


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("framework", BOTH)
def test_weights_that_are_no_numbers_after_the_last_finite_loss(
    framework, validated, small, images
):
    """There is one step per epoch.

    Its loss is that of the good weights before it, and no later step would tell.
    """
    wild = PLAIN.but(lr=1e39, head_lr=1e39, epochs=1, batch_size=64)
    with pytest.warns(
        UserWarning, match="the weights became infinite or not a number in epoch 1"
    ):
        result = fine_tune(
            small[framework],
            images,
            images if validated else None,
            wild,
            progress=False,
        )
    assert (
        "learning rate" in result.stopped and np.isfinite(result.predict(images)).all()
    )


@pytest.mark.parametrize("framework", BOTH)
def test_same_seed_same_bits_other_seed_other_bits(framework, tiny, images):
    recipe = PLAIN.but(augment=0.5, optimizer="adamw", lr=1e-3)
    a, b, c = (
        fine_tune(tiny[framework], images, None, recipe.but(seed=s), progress=False)
        for s in (0, 0, 1)
    )
    assert a.step_losses == b.step_losses != c.step_losses
    assert np.array_equal(a.logits(images), b.logits(images))


@pytest.mark.parametrize("framework", BOTH)
def test_scratch_starts_from_other_weights_and_trains_everything(
    framework, lite0, images
):
    result = fine_tune(
        lite0[framework],
        images,
        None,
        PLAIN.but(strategy="scratch", epochs=1),
        progress=False,
    )
    before, after = snapshot(lite0[framework].model), snapshot(result.backbone.model)
    kernels = [k for k, v in before.items() if v.ndim == 4]
    assert set(kernels) <= set(moved(before, after))
    assert result.trainable > 3_300_000


# --- saved runs -----------------------------------------------------------------------


@pytest.mark.parametrize("framework", BOTH)
@pytest.mark.parametrize("which", ["lite0", "small"])
def test_a_reloaded_run_predicts_the_same_bits(
    framework, which, request, images, tmp_path
):
    net = request.getfixturevalue(which)[framework]
    strategy = "probe" if which == "lite0" else "fine_tune"
    result = fine_tune(
        net, images, None, PLAIN.but(strategy=strategy, epochs=1), progress=False
    )
    expected = result.logits(images)
    result.save(tmp_path / "run", size=64)
    again = load_result(tmp_path / "run")
    assert np.array_equal(again.logits(images), expected)
    assert (
        again.classes == result.classes
        and again.recipe == result.recipe
        and again.info["size"] == 64
    )
    assert again.evaluate(images) == result.evaluate(images)


@pytest.mark.parametrize("framework", BOTH)
def test_a_probe_is_the_linear_probe(framework, lite0, images):
    from transfer_course.vision.features import extract, linear_probe

    result = fine_tune(lite0[framework], images, None, Recipe("probe"), progress=False)
    Z = extract(lite0[framework], images, progress=False)
    probe = linear_probe(Z, images.labels, images.groups, class_weights=None)
    assert np.abs(result.predict(images) - probe.predict_proba(Z)).max() < 1e-3


@pytest.mark.parametrize("framework", BOTH)
def test_predict_takes_one_image_in_many_forms_and_refuses_the_rest_alike(
    framework, small, images, tmp_path
):
    from PIL import Image

    result = fine_tune(
        small[framework],
        images,
        None,
        PLAIN.but(strategy="head", epochs=1),
        progress=False,
    )
    image = images.images[5]
    expected, file = result.predict(image[None]), tmp_path / "one.png"
    Image.fromarray(image).save(file)
    opaque = np.concatenate([image, np.full((64, 64, 1), 255, np.uint8)], -1)
    palette = Image.fromarray(image).quantize(256)
    same = [
        image,
        [image],
        image.astype("int64")[None],
        image.astype("float32"),
        image.tolist(),
        opaque,
        Image.fromarray(image),
    ]
    same += [
        torch.from_numpy(image.copy()),
        [Image.fromarray(image)],
        file,
        str(file),
        file.read_bytes(),
        [file],
    ]
    for form in same:
        assert np.array_equal(result.predict(form), expected), type(form)
    assert np.array_equal(
        result.predict(palette), result.predict(np.asarray(palette.convert("RGB")))
    )
    for three in ([file, str(file), file], [image, file, Image.fromarray(image)]):
        # in a batch of three the last bits may differ from those of one image alone
        np.testing.assert_allclose(
            result.predict(three), np.repeat(expected, 3, 0), atol=1e-6
        )
    grey = np.repeat(image[..., :1], 3, -1)
    for form in (image[..., 0], image[..., :1], image[None, ..., :1]):
        assert np.array_equal(result.predict(form), result.predict(grey[None]))
    clear = opaque.copy()
    clear[..., 3] = 0
    with pytest.raises(BadValue, match="transparent"):
        result.predict(clear)
    clear[..., :3] = 0  # as a file, it is on white
    seen = result.predict(Image.fromarray(clear))
    assert np.array_equal(seen, result.predict(np.full_like(image, 255)))
    for none in ([], image[None][:0]):
        assert result.predict(none).shape == (0, 3)
    Image.fromarray(image).resize((150, 150)).save(file)
    assert result.predict(file).shape == (1, 3), (
        "a file is brought to the size of the training images"
    )
    batch, result.backbone.min_size = image[None], 16
    for wrong, words in (
        (batch / 255, "to 1; expected whole numbers from 0 to 255. Multiply by 255"),
        (
            batch.astype("float32") - 200,
            "expected whole numbers from 0 to 255. Give them as they were",
        ),
        (batch + 0.5, "expected whole numbers"),
        (batch.astype(int) * 2, "expected whole numbers"),
        (np.full_like(batch, np.nan, dtype="float32"), "expected whole numbers"),
        (batch.transpose(0, 3, 1, 2), "use images.transpose(0, 2, 3, 1)"),
        (image.transpose(2, 0, 1), "use images.transpose(1, 2, 0)"),
        (np.zeros((7, 64, 64), np.uint8), "use images[..., None]"),
        (batch > 100, "of type bool"),
        (batch[None], "have the shape (1, 1, 64, 64, 3)"),
        (np.zeros((64, 0, 3), np.uint8), "have the shape (64, 0, 3)"),
        ([image, image[:40, :40]], "several sizes, such as 40 × 40 and 64 × 64"),
        ({"image": image}, "of type dict"),
        (None, "of type NoneType"),
        (tmp_path / "not there.png", "no such file"),
        ([file, tmp_path], "a folder, not a file"),
        (image[:8, :8], "at least"),
    ):
        with pytest.raises(UserMistake) as e:
            result.predict(wrong)
        assert words in str(e.value) and "\n" not in str(e.value)


def test_a_run_that_was_saved_without_its_size_reads_no_files(small, images, tmp_path):
    result = fine_tune(small["torch"], images, None, Recipe("probe"), progress=False)
    assert result.info["size"] == 64
    result.info.clear()
    with pytest.raises(BadValue, match="not known at which size"):
        result.predict(tmp_path / "a.png")


def test_damaged_runs_are_refused_with_a_sentence(small, images, tmp_path):
    run = tmp_path / "run"
    fine_tune(small["torch"], images, None, Recipe("probe"), progress=False).save(
        run, size=64
    )
    with pytest.raises(NotFound):
        load_result(tmp_path / "nowhere")
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    info["classes"].append("one too many")
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(Damaged, match="don't fit"):
        load_result(run)
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (run / "model.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match="checksum"):
        load_result(run)


# --- mistakes -------------------------------------------------------------------------


def test_data_that_cannot_be_trained_on_is_refused(small, images):
    with pytest.raises(BadValue, match="no label"):
        fine_tune(
            small["torch"],
            ImageDataset(images.images, np.full(len(images), -1), images.classes),
            progress=False,
        )
    with pytest.raises(BadValue, match="empty"):
        fine_tune(small["torch"], images.subset([]), progress=False)
    with pytest.raises(BadValue, match="was not trained on"):
        fine_tune(
            small["torch"],
            images,
            ImageDataset(images.images, images.labels, ["x", "y", "z"]),
            progress=False,
        )
    from transfer_course.trainer import keras_loop

    with pytest.raises(BadValue, match="torch one"):
        keras_loop.fine_tune(small["torch"], images, progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(strategy="finetune"),
        dict(lr=0),
        dict(epochs=2.5),
        dict(batch_size=True),
        dict(head_lr=-1.0),
        dict(seed=-1),
        dict(warmup=1.0),
    ],
)
def test_recipes_refuse_what_cannot_work(wrong):
    with pytest.raises(BadValue, match=next(iter(wrong))):
        Recipe(**wrong)


class Arrived(Exception):
    """Raised by a network when a batch reaches it, with the batch's device."""


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_images_follow_the_network_to_its_device(images, where):
    """What a GPU would ask of the code, without one.

    The meta device takes part in every `.to`, and mixing it with the CPU raises.
    """

    def arrive(module, inputs):
        raise Arrived(inputs[0].device.type)

    net = backbone("efficientnet_lite0", "torch", weights=None)
    result = fine_tune(net, images, None, Recipe("probe"), progress=False)
    for module, ask in ((net.model, net.features), (result.model, result.predict)):
        module.to(where).register_forward_pre_hook(arrive)
        with pytest.raises(Arrived, match=where):
            ask(images.images[:2])
