"""Layer-wise rates, one-cycle, head first and the learning-rate finder, in both
frameworks; the two-layer linear model of lesson 15; the study's record.
"""

import json

import numpy as np
import pytest
from kill import small_folder
from test_cli import here
from tiny import PLAIN

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_torch
from transfer_course.insight import schedules
from transfer_course.practice import schedules_study as study
from transfer_course.practice.own_folder import tune_folder
from transfer_course.practice.recipes_file import from_yaml, to_yaml
from transfer_course.practice.settings import default_recipe, unused
from transfer_course.trainer import finder
from transfer_course.trainer.batches import Epoch
from transfer_course.trainer.recipe import Recipe, plan, rate, stage_factors
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.trainer.start import _noted
from transfer_course.vision.freezing import moved, snapshot
from transfer_course.vision.glyphs import handwriting
from transfer_course.vision.sources import glyph_source

FRAMEWORKS = ("torch", "keras")
STAGES = ("stage1", "stage2", "stage3", "fc1")


@pytest.fixture(scope="module")
def nets():
    return {framework: glyph_source("letters", framework) for framework in FRAMEWORKS}


@pytest.fixture(scope="module")
def few():
    return handwriting().subset(np.arange(40))


# --- the shapes of the schedules ------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 37, 84])
def test_one_cycle_is_that_of_torch(steps):
    torch = load_torch()
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=0.5, total_steps=steps, cycle_momentum=False
    )
    for step in range(steps):
        ours = 0.5 * rate(step, steps, Recipe(schedule="one_cycle"))
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        sgd.step()
        if step < steps - 1:
            theirs.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["one_cycle", "range_test", "cosine", "constant"])
def test_a_phase_of_few_steps_has_rates_above_0_up_to_the_peak(schedule, steps):
    rates = [rate(i, steps, Recipe(schedule=schedule)) for i in range(steps)]
    assert all(0 < r <= 1 for r in rates)
    if schedule == "one_cycle":
        assert max(rates) > 0.5


def test_a_range_test_multiplies_the_rate_by_one_factor():
    rates = [rate(i, 50, Recipe(schedule="range_test")) for i in range(50)]
    assert rates[0] == pytest.approx(1e-6) and rates[-1] == 1
    assert np.ptp(np.diff(np.log(rates))) < 1e-12


def test_head_first_opens_everything_after_a_quarter():
    for epochs, lengths in ((1, [1]), (2, [1, 1]), (8, [2, 6]), (12, [3, 9])):
        recipe = Recipe("head_first", epochs=epochs, train_from="stage2")
        phases = plan(recipe, STAGES).phases
        assert [phase.epochs for phase in phases] == lengths
        assert phases[-1].stages == STAGES[1:]
        assert len(phases) == 1 or phases[0].stages == ()


def test_stage_factors_shrink_towards_the_input():
    assert list(stage_factors(STAGES, 0.5).values()) == [0.125, 0.25, 0.5, 1]
    with pytest.raises(BadValue, match="layer_decay is 1.5; it has to be at most 1"):
        Recipe(layer_decay=1.5)
    with pytest.raises(BadValue, match="layer_decay is 0; it has to be a number above"):
        Recipe(layer_decay=0)
    with pytest.raises(BadValue, match="Did you mean 'one_cycle'"):
        Recipe(schedule="onecycle")


# --- layer-wise rates in the loops ----------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_stage_goes_its_share_of_the_way(framework, optimizer, nets, few):
    net, lengths = nets[framework], {}
    start = snapshot(net.model)
    one = PLAIN | dict(optimizer=optimizer, epochs=1, batch_size=40, lr=1e-3)
    for decay in (1.0, 0.4):
        result = fine_tune(
            net, few, None, Recipe(**one, layer_decay=decay), progress=False
        )
        after = snapshot(result.backbone.model)
        for stage, begins in net.stages.items():
            names = [name for name in start if name.startswith(tuple(begins))]
            squares = [np.square(after[name] - start[name]).sum() for name in names]
            lengths.setdefault(stage, []).append(np.sqrt(sum(squares)))
    shares = [slow / fast for fast, slow in lengths.values()]
    np.testing.assert_allclose(shares, [0.4**3, 0.4**2, 0.4, 1], rtol=2e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_frameworks_take_the_same_steps(optimizer, nets, few):
    made = dict(optimizer=optimizer, epochs=3, batch_size=16, lr=1e-3, head_lr=1e-3)
    made |= dict(layer_decay=0.4, schedule="one_cycle", weight_decay=0.01)
    runs = [
        fine_tune(nets[name], few, None, Recipe(**made), progress=False)
        for name in FRAMEWORKS
    ]
    losses = [run.step_losses for run in runs]
    assert len(losses[0]) == 9
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*(run.logits(few) for run in runs), rtol=0, atol=2e-3)


def test_the_torch_loop_is_a_plain_loop_with_a_group_per_stage(nets, few):
    import copy

    torch = load_torch()
    recipe = Recipe(
        **PLAIN | dict(momentum=0.9), epochs=2, batch_size=16, lr=0.01, head_lr=0.02,
        layer_decay=0.5,
    )  # fmt: skip
    result = fine_tune(nets["torch"], few, None, recipe, progress=False)
    body = copy.deepcopy(nets["torch"].model).train()
    from transfer_course.trainer.start import initial_head
    from transfer_course.vision.finetune_torch import linear

    head = linear(*initial_head(128, 10, recipe.seed))
    groups = [dict(params=head.parameters(), lr=0.02)]
    for i, stage in enumerate(STAGES):
        params = [p for n, p in body.named_parameters() if n.startswith(f"{stage}.")]
        groups.append(dict(params=params, lr=0.01 * 0.5 ** (3 - i)))
    sgd = torch.optim.SGD(groups, momentum=0.9)
    for number in range(2):
        epoch = Epoch(few, recipe, number)
        for i in range(len(epoch)):
            batch = epoch[i]
            images = torch.from_numpy(nets["torch"].preprocess(batch["images"]))
            labels = torch.from_numpy(batch["labels"])
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(head(body(images)), labels).backward()
            sgd.step()
    theirs = snapshot(body)
    for name, values in snapshot(result.backbone.model).items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_interrupted_run_ends_with_the_same_bits(
    framework, nets, few, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRANSFER_COURSE_CHECKPOINT_SECONDS", "0")
    recipe = Recipe("head_first", epochs=4, batch_size=16, lr=1e-3, layer_decay=0.4)
    recipe = recipe.but(schedule="one_cycle")

    class Stopped(Exception):
        pass

    def stop(end):
        if end.epoch == 3:
            raise Stopped

    def tune(**how):
        return fine_tune(nets[framework], few, few, recipe, progress=False, **how)

    (tmp_path / "whole").mkdir()
    once = tune(checkpoint=tmp_path / "whole")
    with pytest.raises(Stopped):
        tune(checkpoint=tmp_path, callbacks=[stop])
    again = tune(checkpoint=tmp_path)
    assert not moved(snapshot(once.model), snapshot(again.model))
    assert once.step_losses == again.step_losses
    other = recipe.but(layer_decay=0.5)
    with pytest.raises(BadValue):
        tune(checkpoint=tmp_path / "whole")
        fine_tune(
            nets[framework], few, few, other, progress=False,
            checkpoint=tmp_path / "whole",
        )  # fmt: skip


def test_a_recipe_keeps_its_layer_decay_and_older_ones_are_read(nets, few, tmp_path):
    recipe = Recipe(epochs=1, layer_decay=0.4, schedule="one_cycle")
    assert from_yaml(to_yaml(recipe)) == recipe
    fine_tune(nets["torch"], few, None, recipe, progress=False).save(tmp_path / "run")
    assert load_result(tmp_path / "run").recipe == recipe
    # A checkpoint of an earlier version has no such field, and goes on.
    assert "layer_decay" not in _noted(Recipe())
    assert _noted(recipe)["layer_decay"] == 0.4


# --- the finder -----------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_finder_finds_a_rate_that_trains(framework, nets, few):
    recipe = Recipe(optimizer="sgd", batch_size=16, head_lr=3e-4, epochs=12)
    before = snapshot(nets[framework].model)
    found = finder.find_rate(nets[framework], few, recipe, steps=60)
    assert not moved(before, snapshot(nets[framework].model))
    assert 3e-4 <= found.lr <= 2e-2
    # The loss is no number in the end, and then the test ends early.
    assert 40 < len(found.rates) == len(found.losses) <= 60
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e6) / 59)
    made = recipe.but(lr=found.lr, head_lr=found.lr)
    losses = fine_tune(nets[framework], few, None, made, progress=False).step_losses
    assert losses[-1] < 0.5 * losses[0]


def test_smoothing_starts_at_the_first_loss():
    assert finder.smoothed([2.0])[0] == pytest.approx(2)
    by_hand = 0.1 * (0.9 * 2.0 + 5.0) / (1 - 0.9**2)
    assert finder.smoothed([2.0, 5.0])[1] == pytest.approx(by_hand)


def test_the_suggestion_is_a_tenth_of_the_best_rate_with_one_digit():
    rates = np.geomspace(1e-6, 1, 100)
    losses = 1 + np.abs(np.log10(rates) + 2)
    best = rates[np.argmin(finder.smoothed(losses))]
    assert finder.suggested(rates, losses) == pytest.approx(best / 10, rel=0.3)
    assert len(f"{finder.suggested(rates, losses):g}".strip("0.")) <= 2


def test_a_range_test_keeps_the_ratio_of_the_rates():
    made = finder.range_recipe(Recipe("gradual", lr=2e-4, head_lr=1e-3, patience=2), 99)
    assert (made.strategy, made.lr, made.patience) == ("fine_tune", 1.0, None)
    assert made.head_lr == pytest.approx(5) and made.epochs * 4 >= 100
    with pytest.raises(BadValue, match="'auto' has no learning rate to find: it"):
        finder.range_recipe(Recipe("auto"), 99)


# --- the command ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("data") / "things", each=8)


def test_the_options_reach_the_run(folder, tmp_path):
    options = "--strategy fine_tune --epochs 1 --lr find --layer-decay 0.4 --augment 0"
    options += " --schedule one_cycle --train-from top --size 32 --json"
    told = here("fine-tune", folder, *options.split(), "--out", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    recipe, search = info["recipe"], info["lr_search"]
    assert (recipe["layer_decay"], recipe["schedule"]) == (0.4, "one_cycle")
    assert recipe["lr"] == search["lr"] and len(search["rates"]) == len(
        search["losses"]
    )
    ratio = default_recipe("fine_tune")
    assert recipe["head_lr"] / recipe["lr"] == pytest.approx(
        ratio.head_lr / ratio.lr, rel=1e-4
    )
    assert f"It suggests {search['lr']:g}" in told.stderr
    assert f"lr: {search['lr']}" in (tmp_path / "run" / "recipe.yaml").read_text()
    again = tune_folder(
        folder, tmp_path / "run", strategy="fine_tune", epochs=1, lr="find", size=32,
        layer_decay=0.4, schedule="one_cycle", train_from="top", augment=0.0,
        resume=True, progress=False,
    )  # fmt: skip
    assert again["run"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr fnid", "--lr is 'fnid'; it has to be a number above 0, or find."),
        ("--lr find --strategy probe", "'probe' has no learning rate to find"),
        ("--lr find --strategy auto", "it searches one itself"),
        ("--layer-decay 2", "layer_decay is 2.0; it has to be at most 1."),
        ("--layer-decay 0", "layer_decay is 0.0; it has to be a number above 0."),
        ("--schedule onecycle", "Did you mean 'one_cycle'?"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, words, folder, tmp_path):
    out = tmp_path / "run"
    given = ("--size", 32, "--strategy", "fine_tune", *options.split(), "--out", out)
    done = here("fine-tune", folder, *given, code=2)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error:") and words in line
    assert not out.exists()


def test_options_without_effect_are_told():
    assert unused(Recipe("head"), ["layer_decay"]) == ["layer_decay"]
    assert unused(Recipe("probe"), ["schedule"]) == ["schedule"]
    assert unused(Recipe("fine_tune"), ["schedule", "layer_decay"]) == []


# --- lesson 15 ------------------------------------------------------------------------


def test_rates_are_those_of_the_plan():
    recipe = Recipe("gradual", epochs=8, lr=1e-3, head_lr=0.02, layer_decay=0.5)
    rates = schedules.stage_rates(recipe, STAGES, 5)
    assert list(rates) == [*STAGES, "head"]
    assert all(len(row) == 40 for row in rates.values())
    assert (rates["head"] > 0).all() and rates["head"].max() == pytest.approx(0.02)
    opened = [(row > 0).sum() for row in rates.values()]
    assert opened == sorted(opened) and opened[0] == 10
    last = slice(30, 40)
    np.testing.assert_allclose(rates["stage1"][last], rates["fc1"][last] / 8)
    assert len(schedules.stage_rates(Recipe("probe"), STAGES, 5)["head"]) == 0


def test_a_drawing_has_a_panel_per_recipe():
    recipes = {"a": Recipe(), "b": Recipe("gradual")}
    figure = schedules.draw_schedule(recipes, STAGES)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == [*STAGES, "head"]
    table = figure.axes[1].collections[0].get_array()
    assert table.mask.any() and table.shape == (5, 80)
    assert schedules.draw_schedule(Recipe(), STAGES).axes[0].get_title() == "fine_tune"


def test_the_gradients_are_the_slopes_of_the_loss():
    rng = np.random.default_rng(0)
    head, body, X, y = (rng.normal(size=s) for s in ((2,), (2, 4), (6, 4), (6,)))

    def loss(head, body):
        return ((X @ body.T @ head - y) ** 2).mean() / 2

    of_head, of_body = schedules.linear_gradients(head, body, X, y)
    for i in range(2):
        step = 1e-6 * np.eye(2)[i]
        slope = (loss(head + step, body) - loss(head - step, body)) / 2e-6
        assert of_head[i] == pytest.approx(slope, abs=1e-7)
        for j in range(4):
            step = np.zeros((2, 4))
            step[i, j] = 1e-6
            slope = (loss(head, body + step) - loss(head, body - step)) / 2e-6
            assert of_body[i, j] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("start", [-1.5, -0.3, 0.05, 1.1, 2.0])
@pytest.mark.parametrize("body", [(0.6, 0.8), (-0.9, 0.3)])
def test_descent_ends_where_the_formula_says(start, body):
    X = np.linspace(-1, 1, 9)[:, None] * [1.0, 0.0] * 2
    heads, bodies = schedules.tune_linear(
        [start], [body], X, X[:, 0] * 1.1, 0.002, 12_000
    )
    exact = schedules.end_of_tuning(start, body, 1.1)
    np.testing.assert_allclose(heads[-1] @ bodies[-1], exact, atol=0.01)
    assert (bodies[:, 0, 1] == body[1]).all()  # not a bit
    kept = heads[:, 0] ** 2 - bodies[:, 0, 0] ** 2
    np.testing.assert_allclose(kept, kept[0], atol=0.02)


def test_tuning_from_a_probe_of_right_features_changes_nothing():
    rng = np.random.default_rng(1)
    body = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
    truth = rng.normal(size=3)
    X = rng.normal(size=(20, 5)) @ np.eye(5, 8)  # five of the eight inputs vary
    y = X @ body.T @ truth
    head = schedules.probe_linear(body, X, y)
    np.testing.assert_allclose(head, truth, atol=1e-10)
    heads, bodies = schedules.tune_linear(head, body, X, y, 0.05, 300)
    np.testing.assert_allclose(heads[-1] @ bodies[-1], truth @ body, atol=1e-10)
    heads, bodies = schedules.tune_linear(0.1 * truth, body, X, y, 0.05, 3000)
    assert abs(X @ bodies[-1].T @ heads[-1] - y).max() < 1e-3
    assert abs(heads[-1] @ bodies[-1] - truth @ body)[5:].max() > 0.05
    assert (bodies[-1][:, 5:] == body[:, 5:]).all()


def test_the_distance_of_features_is_relative():
    features = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert schedules.distance_moved(features, features) == 0
    assert schedules.distance_moved(features, 2 * features) == pytest.approx(1)
    with pytest.raises(BadValue, match="expected the same images"):
        schedules.distance_moved(features, features[:1])


# --- the study ------------------------------------------------------------------------


def test_the_record_is_complete_and_every_method_had_one_search():
    runs, about = study.load_schedules()
    planned = {(m, s) for m in study.METHODS for s in study.SEEDS}
    assert {(run.method, run.seed) for run in runs} == planned
    assert len(runs) == len(planned)
    tried = {}
    for method, lr, seed, form, _ in about["tried"]:
        tried.setdefault(method, set()).add((lr, seed, form))
    for method, found in tried.items():
        optimizer = study.recipe_of(method, 0.001).optimizer
        rates = 1 if method == "probe" else len(study.RATES[optimizer])
        assert len(found) == rates * len(study.VALIDATION_SEEDS) * 2
    assert set(tried) == set(study.METHODS)
    for run in runs:
        assert run.lr == study.best_rate(run.method, about["tried"])
        sizes = {name: len(right) for name, right in run.correct.items()}
        assert sizes == {name: len(study.groups_of(name)) for name in study.TESTS}


def test_all_methods_have_one_budget_of_steps(nets):
    digits = handwriting().subset(np.arange(100))
    for method in study.METHODS:
        recipe = study.recipe_of(method, 0.003)
        phases = plan(recipe, nets["torch"].stages).phases
        steps = sum(phase.epochs for phase in phases) * len(Epoch(digits, recipe, 0))
        assert steps == (0 if method == "probe" else 84)
