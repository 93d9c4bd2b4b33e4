"""Lesson 18: rare classes, thresholds, temperature and abstaining, and its study."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn import metrics

from transfer_course.engine.errors import BadValue
from transfer_course.insight import calibrate
from transfer_course.practice import abstain
from transfer_course.practice import calibrate_study as study
from transfer_course.theory.losses import softmax
from transfer_course.vision.calibration import calibration_error, chance_error
from transfer_course.vision.data import styles


def two_classes(seed, n=80, ties=False):
    """Scores and labels with both classes; few distinct scores if `ties`."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], [n - n // 4, n // 4]))
    scores = rng.normal(labels, 1)
    return (np.round(scores) if ties else scores), labels


def answers(seed, n=300, classes=5, T=1.0):
    """Logits, and labels drawn from their softmax at temperature `T`."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, classes))
    cumulated = softmax(logits / T).cumsum(1)
    return logits, (rng.random((n, 1)) > cumulated[:, :-1]).sum(1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_judged_as_scikit_learn_judges_them(seed, ties):
    scores, labels = two_classes(seed, ties=ties)
    auc = metrics.roc_auc_score(labels, scores)
    assert np.isclose(calibrate.roc_auc(scores, labels), auc)
    ap = metrics.average_precision_score(labels, scores)
    assert np.isclose(calibrate.average_precision(scores, labels), ap)
    points = calibrate.operating_points(scores, labels)
    how = dict(drop_intermediate=False)
    alarms, recall, thresholds = metrics.roc_curve(labels, scores, **how)
    assert np.allclose(points.threshold, thresholds[1:])
    assert np.allclose(points.recall, recall[1:])
    assert np.allclose(points.false_alarms, alarms[1:])
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    assert np.allclose(points.precision[::-1], precision[:-1])
    area = np.trapezoid(
        np.append(0, points.recall), np.append(0, points.false_alarms)
    )  # the ROC curve begins at (0, 0)
    assert np.isclose(area, auc)


def test_auc_is_the_share_of_pairs_and_practice_uses_the_same_function():
    assert calibrate.roc_auc([1.0, 2, 2, 3], [0, 0, 1, 1]) == 3.5 / 4
    assert calibrate.roc_auc([0.0, 1], [0, 1]) == 1
    assert calibrate.roc_auc([1.0, 1], [0, 1]) == 0.5
    assert abstain.share_below is calibrate.share_below


@pytest.mark.parametrize(
    "scores, labels",
    [
        ([0.1, 0.2], [1, 1]),
        ([0.1, 0.2], [0, 0]),
        ([0.1, 0.2], [1, 2]),
        ([0.1, np.nan], [0, 1]),
        ([0.1], [0, 1]),
        ([[0.1, 0.2]], [[0, 1]]),
        ([], []),
    ],
)
def test_scores_and_labels_have_to_fit(scores, labels):
    for function in (calibrate.roc_auc, calibrate.average_precision):
        with pytest.raises(BadValue, match="expected"):
            function(scores, labels)


def test_precision_at_agrees_with_counting():
    scores, labels = two_classes(0, 400)
    points, share = calibrate.operating_points(scores, labels), labels.mean()
    given = share, points.recall, points.false_alarms
    assert np.allclose(calibrate.precision_at(*given), points.precision)
    assert calibrate.precision_at(0.01, 0.9, 0.1) == pytest.approx(9 / 108)
    assert calibrate.precision_at(1.0, 0.5, 0.2) == 1


@pytest.mark.parametrize("miss", [0.5, 1, 5, 50])
def test_the_cheapest_threshold_is_the_cheapest_of_all(miss):
    for seed in range(4):
        scores, labels = two_classes(seed, ties=seed % 2)
        chosen = calibrate.cheapest_threshold(scores, labels, miss, alarm=2.0)
        found = [
            calibrate.costs(scores, labels, threshold, miss, 2.0).mean()
            for threshold in [*scores, np.inf]
        ]
        cost = calibrate.costs(scores, labels, chosen, miss, 2.0).mean()
        assert np.isclose(cost, min(found))


def test_costs_name_each_error_and_nothing_is_called_where_that_is_cheapest():
    scores, labels = [0.9, 0.8, 0.2, 0.1], [1, 0, 1, 0]
    assert calibrate.costs(scores, labels, 0.5, 7, 2).tolist() == [0, 2, 7, 0]
    assert calibrate.costs(scores, labels, 0.9, 7, 2).tolist() == [0, 0, 7, 0]
    assert calibrate.cheapest_threshold([0.1, 0.9], [1, 0], 1, 5) == np.inf


def test_right_probabilities_need_only_the_costs():
    rng = np.random.default_rng(0)
    chances = rng.random(200_000)
    labels = (rng.random(200_000) < chances).astype(int)
    assert abs(calibrate.cheapest_threshold(chances, labels, 4) - 1 / 5) < 0.03


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_temperature_finds_the_one_that_made_the_labels(true):
    logits, labels = answers(1, 20_000, T=true)
    assert calibrate.temperature(logits, labels) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_temperature_equals_references(seed):
    torch = pytest.importorskip("torch")
    logits, labels = answers(seed, T=1 + seed)
    T = calibrate.temperature(logits, labels)

    def loss(log_inverse):
        chances = log_softmax(np.exp(log_inverse) * logits, axis=1)
        return -chances[np.arange(len(labels)), labels].mean()

    by_scipy = minimize_scalar(loss, bounds=(-4, 4), method="bounded")
    assert np.isclose(loss(-np.log(T)), by_scipy.fun, atol=1e-9)
    z, y = torch.tensor(logits), torch.tensor(labels)
    free = torch.tensor(1.0 / T, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(z * free, y).backward()
    assert abs(free.grad.item()) < 1e-6


def test_keras_has_no_slope_at_the_temperature():
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the gradient is TensorFlow's")
    logits, labels = answers(7, T=2.0)
    inverse = tf.Variable(1 / calibrate.temperature(logits, labels), dtype="float64")
    with tf.GradientTape() as tape:
        scaled = inverse * logits
        each = keras.losses.sparse_categorical_crossentropy(labels, scaled, True)
        loss = tf.reduce_mean(each)
    assert abs(float(tape.gradient(loss, inverse))) < 1e-6


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_temperature_grows_with_the_logits(scale):
    logits, labels = answers(3, T=1.7)
    T = calibrate.temperature(logits, labels)
    scaled = calibrate.temperature(scale * (logits + 5.0), labels)
    assert np.isclose(scaled, scale * T, rtol=1e-6)
    assert (logits.argmax(1) == (logits / T).argmax(1)).all()


def test_temperature_says_where_there_is_none():
    logits, _ = answers(0)
    with pytest.raises(BadValue, match="all are classified correctly"):
        calibrate.temperature(logits, logits.argmax(1))
    with pytest.raises(BadValue, match="tell nothing"):
        calibrate.temperature(logits, logits.argmin(1))
    with pytest.raises(BadValue, match="tell nothing"):
        calibrate.temperature(np.zeros((4, 3)), [0, 1, 2, 0])
    with pytest.raises(BadValue, match="expected"):
        calibrate.temperature(logits, [0, 1])
    with pytest.raises(BadValue, match="expected"):
        calibrate.temperature(logits[0], [0])


def test_ece_of_a_calibrated_model_is_what_chance_gives():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 0.9, 120)
    found = [
        calibration_error(confidence, rng.random(120) < confidence) for _ in range(400)
    ]
    chance = chance_error(confidence, draws=2000)
    assert np.mean(found) == pytest.approx(chance.mean, abs=0.004)
    assert np.mean(np.array(found) > chance.high) == pytest.approx(0.05, abs=0.03)
    assert chance.mean > 0.05  # although there is no error at all


def test_risk_and_coverage_agree_with_counting():
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(1, 9, 50) / 10, rng.random(50) < 0.6
    coverage, risk = calibrate.risk_coverage(confidence, correct)
    thresholds = np.unique(confidence)[::-1]
    assert len(coverage) == len(thresholds) and coverage[-1] == 1
    for threshold, share, errors in zip(thresholds, coverage, risk, strict=True):
        answered = confidence >= threshold
        assert np.isclose(share, answered.mean())
        assert np.isclose(errors, 1 - correct[answered].mean())


@pytest.mark.parametrize("n, coverage", [(9, 0.5), (19, 0.95), (100, 0.8), (37, 0.3)])
def test_a_promised_coverage_is_kept(n, coverage):
    rng = np.random.default_rng(n)
    kept = []
    for _ in range(4000):
        *known, new = rng.normal(size=n + 1)
        kept.append(new >= calibrate.coverage_threshold(known, coverage))
    most = coverage + 1 / (n + 1)
    assert coverage - 0.025 < np.mean(kept) < most + 0.025


def test_a_promise_that_few_images_cannot_keep_is_refused():
    assert calibrate.coverage_threshold([0.3, 0.1, 0.2], 0.75) == 0.1
    for coverage in (0.76, 1.0, 0.0, -0.1):
        with pytest.raises(BadValue, match="coverage"):
            calibrate.coverage_threshold([0.3, 0.1, 0.2], coverage)


# The study


@pytest.fixture(scope="module")
def five_styles():
    """All images, read once."""
    return styles()


@pytest.fixture
def stage(monkeypatch, five_styles):
    """The study's images without their features, which nothing here needs."""
    monkeypatch.setattr(study, "stage", lambda: (five_styles, None))
    study.parts.cache_clear()
    yield five_styles
    study.parts.cache_clear()


def test_the_records_are_complete(stage):
    rare = study.rare_labels(stage)
    for run, seed in zip(study.load_calibrate("leak"), study.SEEDS, strict=True):
        assert run.seed == seed and set(run.won) == set(study.SCHEMES)
        for scheme in study.SCHEMES:
            assert len(run.correct[scheme]) == rare.sum()
            for which, label in (("rare", 1), ("other", 0)):
                identities = np.unique(stage.groups[rare == label])
                assert len(run.won[scheme][which]) == len(identities)
    for run, seed in zip(study.load_calibrate("shift"), study.SEEDS, strict=True):
        assert run.seed == seed and set(run.correct) == set(stage.domains)
        for style, right in run.correct.items():
            assert len(right) == len(study.tested(seed, style))
            assert {len(c) for c in run.confidence[style].values()} == {len(right)}


def test_no_identity_is_in_two_sets_of_a_grouped_split(stage):
    for seed in (0, 7):
        sets = [set(stage.groups[mask]) for mask in study.parts(seed)]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        for train, test in study.folds("grouped", seed):
            assert not set(stage.groups[train]) & set(stage.groups[test])
        shared = [
            set(stage.groups[train]) & set(stage.groups[test])
            for train, test in study.folds("random", seed)
        ]
        assert all(shared)


def test_the_mean_of_the_shares_is_the_auc():
    scores, labels = two_classes(0)
    pairs = calibrate.share_below(scores[labels == 0], scores[labels == 1])
    auc = calibrate.roc_auc(scores, labels)
    assert np.isclose(pairs.mean(0).mean(), auc)
    assert np.isclose(pairs.mean(1).mean(), auc)


def test_overconfidence_is_what_the_record_says(stage):
    runs = study.load_calibrate("shift")
    for style in ("noto", "photo"):
        gaps = [
            np.array(run.confidence[style]["source"]) / 1000 - run.correct[style]
            for run in runs
        ]
        found = study.overconfidence(runs, style, "source")
        assert np.isclose(found.mean, np.concatenate(gaps).mean())
        assert found.low < found.mean < found.high


def auc_world(seed, identities=(40, 120), images=3, seeds=6):
    """Shares of won pairs of two methods, as `paired_auc` takes them.

    The first method has seen part of what makes an identity differ. Returns the tables
    and the true difference of the AUCs.
    """
    rng = np.random.default_rng(seed)
    tables, shift, spread, noise = [], 1.4, 0.8, (0.6, 1.0)
    groups = [np.repeat(np.arange(n), images) for n in identities]
    own = [spread * rng.normal(size=n) for n in identities]
    won = {"rare": [], "other": []}
    for size in noise:
        yes, no = (
            own[k][groups[k]] + size * rng.normal(size=(seeds, len(groups[k])))
            for k in (0, 1)
        )
        pairs = [
            calibrate.share_below(n, y + shift) for y, n in zip(yes, no, strict=True)
        ]
        won["rare"].append(np.array([p.mean(0) for p in pairs]))
        won["other"].append(np.array([p.mean(1) for p in pairs]))
    tables = [(*won[which], groups[k]) for k, which in enumerate(("rare", "other"))]
    auc = [norm.cdf(shift / np.sqrt(2 * (spread**2 + size**2))) for size in noise]
    return tables, auc[0] - auc[1]


def test_the_interval_of_an_auc_difference_covers_what_it_says():
    hits = []
    for seed in range(250):
        tables, truth = auc_world(seed)
        _, low, high = study.paired_auc(*tables, level=0.9)
        hits.append(low <= truth <= high)
    assert 0.85 < np.mean(hits) < 0.97


def test_power_rises_with_effect_and_seeds_and_spread_is_found_again():
    rng = np.random.default_rng(0)
    true = study.Spread(identity=0.2, cell=0.3, seed=0.1)
    x = rng.normal(0, true.identity, 400) + rng.normal(0, true.seed, (40, 1))
    x = x + rng.normal(0, true.cell, (40, 400))
    assert np.allclose(study.spread(x, np.arange(400)), true, atol=0.03)
    few = study.spread(x[:4], np.arange(400))  # the cells are in the means as well
    assert np.isclose(few.identity, true.identity, atol=0.03)
    x[rng.random(x.shape) > 0.3] = np.nan
    assert np.allclose(study.spread(x, np.arange(400)), true, atol=0.04)
    how = dict(identities=40, worlds=60)
    weak = study.power(true, 0.02, seeds=5, **how)
    strong = study.power(true, 0.2, seeds=20, **how)
    assert weak < 0.3 and strong > 0.9
