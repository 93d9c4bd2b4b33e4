"""Scores against scikit-learn, and intervals against brute force and against simulated truth."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from transfer_course.engine.errors import BadValue
from transfer_course.vision.evaluate import Interval, confusion_matrix, interval, majority, paired_interval, scores

quick = settings(max_examples=40, deadline=None)
pairs = st.integers(1, 6).flatmap(lambda c: st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=30))


@pytest.mark.filterwarnings("ignore:A single label")
@quick
@given(pairs, st.integers(0, 3))
def test_scores_are_scikit_learns(rows, unused):
    y, p = map(np.array, zip(*rows, strict=True))
    c = max(y.max(), p.max()) + 1 + unused  # classes that occur nowhere must not matter
    how = dict(average="macro", labels=np.unique(y), zero_division=0)
    want = dict(
        accuracy=metrics.accuracy_score(y, p),
        balanced_accuracy=metrics.recall_score(y, p, **how),
        precision=metrics.precision_score(y, p, **how),
        recall=metrics.recall_score(y, p, **how),
        f1=metrics.f1_score(y, p, **how),
    )
    got = scores(y, p, c)
    assert got == pytest.approx(want, abs=1e-12) and list(got) == list(want)
    assert scores(y, p) == pytest.approx(want, abs=1e-12)
    np.testing.assert_array_equal(confusion_matrix(y, p, c), metrics.confusion_matrix(y, p, labels=range(c)))


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    assert scores(y, p)["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, p))


def test_one_class_and_lists():
    assert scores([0, 0], [0, 0]) == dict.fromkeys(["accuracy", "balanced_accuracy", "precision", "recall", "f1"], 1.0)
    assert set(scores([1, 1], [0, 0]).values()) == {0.0}
    assert all(type(v) is float for v in scores([0, 1], [1, 1]).values())


@pytest.mark.parametrize(
    "y, p, n",
    [([0, 1], [0], 2), ([0, 2], [0, 1], 2), ([0, -1], [0, 0], 2), ([0, 1], [0, -1], 2), ([0.0], [0], 2)]
    + [([[0]], [[0]], 2), (["a"], ["a"], 2), ([0, np.nan], [0, 1], 2)],
)
def test_confusion_refuses(y, p, n):
    with pytest.raises(BadValue, match="expected"):
        confusion_matrix(y, p, n)


def test_scores_of_nothing():
    with pytest.raises(BadValue, match="no images"):
        scores(np.array([], int), np.array([], int))


def test_majority():
    assert majority([3, 1, 3, -1, -1, -1], 4).tolist() == [3, 3, 3, 3]
    assert majority([1, 0], 1).tolist() == [0]  # a tie goes to the first
    assert majority([1], 0).shape == (0,)
    with pytest.raises(BadValue):
        majority([-1], 2)


def brute(x, groups, n, seed):
    """The same bootstrap, thing by thing: draw seeds and identities one fewer than there are, pool their items."""
    rng, ids = np.random.default_rng(seed), np.unique(groups)
    out = []
    for _ in range(n):
        rows = rng.integers(0, len(x), max(1, len(x) - 1))
        things = rng.choice(ids, len(ids) - 1)
        out.append(np.nanmean(np.concatenate([x[rows][:, groups == g] for g in things], axis=1)))
    return np.array(out)


@pytest.mark.parametrize("kind", ["right or wrong", "losses", "each seed tests its own part"])
def test_resampling_is_the_brute_force_one(kind):
    from transfer_course.vision.bootstrap import _resample, _sums

    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 6, 12)))
    x = rng.random((4, len(groups))) + 0.3 * rng.standard_normal(12)[groups] + 0.2 * rng.standard_normal((4, 1))
    x = (x > 0.6).astype(float) if kind == "right or wrong" else x
    if kind.startswith("each"):
        x[rng.random((4, 12))[:, groups] < 0.4] = np.nan
    ours = _resample(*_sums(x, groups), 3000, np.random.default_rng(0))
    slow = brute(x, groups, 3000, 1)
    assert ours.mean() == pytest.approx(slow.mean(), abs=0.008)
    assert ours.std() == pytest.approx(slow.std(), rel=0.07)
    for q in (0.025, 0.975):
        assert np.quantile(ours, q) == pytest.approx(np.quantile(slow, q), abs=0.2 * slow.std())


tables = st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(0, 10**6))


@quick
@given(tables)
def test_interval_properties(shape):
    s, n, seed = shape
    rng = np.random.default_rng(seed)
    x, groups = rng.random((s, n)) < rng.random(), rng.integers(0, 4, n)
    wide, narrow = interval(x, groups, n_boot=300), interval(x, groups, level=0.8, n_boot=300)
    assert 0 <= wide.low <= narrow.low <= wide.mean == x.mean() <= narrow.high <= wide.high <= 1
    assert wide == interval(x, groups, n_boot=300) and all(type(v) is float for v in wide)
    names = np.array(list("abcd"))[groups]
    assert interval(x, names, n_boot=300) == wide  # only who belongs together matters
    mirrored = interval(~x, groups, n_boot=300)
    assert mirrored.mean == pytest.approx(1 - wide.mean) and 0 <= mirrored.low <= mirrored.high <= 1


def test_seeds_seed_and_shape():
    x = np.random.default_rng(0).random(50) < 0.6
    assert interval(x) == interval(x[None]) != interval(x, seed=1)
    assert isinstance(interval(x), Interval) and str(Interval(0.5, 0.25, 0.75)) == "0.50 (0.25 to 0.75)"
    mean, low, high = interval(x.tolist(), groups=[None if i % 2 else f"{i // 4}" for i in range(50)])
    assert low < mean < high


def test_seed_spread_widens():
    """Resampling the items alone would not see that the seeds disagree."""
    rng = np.random.default_rng(0)
    x = rng.random((5, 400)) < np.array([[0.3], [0.4], [0.5], [0.6], [0.7]])
    calm = rng.random((5, 400)) < 1
    width = [i.high - i.low for i in (interval(x), interval(calm))]
    assert width[0] > 3 * width[1]


def test_unanimous_is_not_certain():
    few, many = interval(np.ones(10), level=0.95), interval(np.ones(1000), level=0.95)
    assert few.low == pytest.approx(0.025 ** (1 / 10)) and few.high == 1 and many.low > 0.99
    assert interval(np.ones(100), groups=np.arange(100) // 10, level=0.95) == few  # ten things, not a hundred
    assert interval(np.zeros(10), level=0.95) == (0, 0, pytest.approx(1 - few.low))
    assert interval([1, 0, 1], groups=["a", "a", "a"]) == (pytest.approx(2 / 3), 0, 1)  # one thing tells nothing


def test_paired():
    rng = np.random.default_rng(1)
    luck, easy = rng.random((3, 300)), np.repeat(rng.random(100), 3)
    a, b, groups = luck < easy + 0.08, luck < easy, np.repeat(np.arange(100), 3)
    d, back = paired_interval(a, b, groups), paired_interval(b, a, groups)
    assert d.low > 0 and d.mean == pytest.approx(a.mean() - b.mean()) and back.mean == -d.mean and back.high < 0
    apart = interval(a, groups)
    assert d.high - d.low < 0.7 * (apart.high - apart.low)
    assert paired_interval(a, a, groups) == (0, 0, 0)
    assert paired_interval(np.ones(3), np.zeros(3)).low < 0.2  # three things, however clear, are three
    assert paired_interval([2.5, 3.0, 1.0], [1.0, 1.0, 1.5]).mean == pytest.approx(1)


bad = [[], [[]], np.zeros((2, 2, 2)), [1, np.nan], [np.inf, 1], ["a"], [[1, 0], [1]], None, 1.0]


@pytest.mark.parametrize("x", bad, ids=repr)
def test_interval_refuses(x):
    for call in (lambda: interval(x), lambda: paired_interval(x, x)):
        with pytest.raises(BadValue):
            call()


@pytest.mark.parametrize("how", [dict(groups=[1]), dict(groups=[[1], [2]]), dict(level=95), dict(level=0), dict(level=1), dict(n_boot=0)])
def test_interval_refuses_settings(how):
    with pytest.raises(BadValue, match="expected"):
        interval([1, 0], **how)
    with pytest.raises(BadValue, match="expected"):
        paired_interval([1, 0], [0, 1], **how)


def test_what_a_seed_did_not_test_is_left_out():
    rng = np.random.default_rng(0)
    x, groups = (rng.random((4, 90)) < 0.7).astype(float), np.arange(90) // 3
    x[rng.random((4, 30))[:, groups] < 0.5] = np.nan
    x, groups = x[:, (there := ~np.isnan(x).all(0))], groups[there]
    mean, low, high = interval(x, groups)
    assert mean == pytest.approx(np.nanmean(x)) and 0 <= low < mean < high <= 1
    assert paired_interval(x, x, groups) == (0, 0, 0)
    with pytest.raises(BadValue, match="same items"):
        paired_interval(x, np.nan_to_num(x), groups)
    with pytest.raises(BadValue, match="nothing but NaN"):
        interval([[1, np.nan], [0, np.nan]])


def test_paired_refuses_other_shapes():
    with pytest.raises(BadValue, match="same items"):
        paired_interval([1, 0], [1, 0, 1])


def covers(make, truth, n=200, level=0.95, use_groups=True):
    rng, hits = np.random.default_rng(7), 0
    for i in range(n):
        x, groups = make(rng)
        _, low, high = interval(x, groups if use_groups else None, level=level, n_boot=300, seed=i)
        hits += low <= truth <= high
    return hits / n


def correlated(rng):
    """Forty things, five pictures each; a picture's luck is its thing's."""
    easy = rng.beta(0.9, 0.6, 40)
    return rng.random(200) < np.repeat(easy, 5), np.repeat(np.arange(40), 5)


def wild_seeds(rng):
    return 0.6 + 0.1 * rng.standard_normal((3, 1)) + 0.3 * rng.standard_normal(60), np.arange(60)


def test_coverage():
    """A 95 % interval holds the truth about 95 times of 100; one that forgets the identities does not."""
    assert 0.91 <= covers(correlated, 0.6) <= 0.985
    assert covers(correlated, 0.6, use_groups=False) < 0.82


@pytest.mark.parametrize("level, low, high", [(0.8, 0.72, 0.9), (0.95, 0.91, 0.99)])
def test_coverage_with_few_wild_seeds(level, low, high):
    assert low <= covers(wild_seeds, 0.6, level=level) <= high


def test_fast_and_small():
    rng = np.random.default_rng(0)
    x = rng.random((5, 400)) < 0.6
    interval(x)  # scipy.special is imported once
    start = time.perf_counter()
    interval(x, np.arange(400) // 2)
    assert time.perf_counter() - start < 1
    start = time.perf_counter()
    interval(rng.random((3, 50_000)) < 0.9, n_boot=2000)
    paired_interval(rng.random(50_000), rng.random(50_000), n_boot=100)
    assert time.perf_counter() - start < 5
