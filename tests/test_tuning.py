"""The study behind the demo and lessons 12 and 13: its folds, tables and records."""

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.practice import tuning
from transfer_course.vision.evaluate import paired_interval


@pytest.mark.parametrize("data", tuning.STUDIES)
def test_no_identity_is_trained_on_and_tested(data):
    """Nor is a validation identity ever tested, in any repeat."""
    images = tuning.tuning_images(data, size=16)
    folds = tuning.STUDIES[data].folds
    for repeat in range(3):
        where = tuning.where_tested(images, folds, repeat)
        for k in range(folds):
            fold = tuning.tuning_fold(images, where, k)
            trained = set(fold.train.groups.tolist())
            for test in fold.tests.values():
                assert not set(test.groups.tolist()) & trained
        for test, d in images.items():
            kept = tuning.where_tested(images, folds)[test] == tuning.VALIDATION
            assert (kept == (where[test] == tuning.VALIDATION)).all()
            assert len(set(where[test])) == folds + 1 and len(where[test]) == len(d)


@pytest.mark.parametrize("data", tuning.STUDIES)
def test_every_repeat_of_a_record_tests_every_other_identity_once(data):
    runs, _ = tuning.load_tuning(data)
    images = tuning.tuning_images(data, size=16)
    where = tuning.where_tested(images, tuning.STUDIES[data].folds)
    for framework in ("torch", "keras"):
        for strategy in tuning.STRATEGIES:
            for test, d in images.items():
                table, groups = tuning.tuned_table(
                    data, runs, framework, strategy, test
                )
                times = (~np.isnan(table)).sum(0)
                assert set(times) == {tuning.STUDIES[data].repeats[strategy]}
                assert (groups == d.groups[where[test] != tuning.VALIDATION]).all()


def test_stored_predictions_are_right_where_the_record_says_so():
    runs, _ = tuning.load_tuning("photos")
    images = tuning.tuning_images("photos", size=16)
    folds = tuning.STUDIES["photos"].folds
    where = [tuning.where_tested(images, folds, repeat) for repeat in range(20)]
    for run in runs:
        fold = tuning.tuning_fold(images, where[run.repeat], run.fold)
        for test, d in fold.tests.items():
            guess = tuning.class_numbers(run.predicted[test])
            assert ((guess == d.labels) == run.correct[test]).all()


@pytest.mark.parametrize("data", tuning.STUDIES)
def test_the_record_is_of_these_settings(data):
    _, about = tuning.load_tuning(data)
    study = tuning.STUDIES[data]
    assert (about["size"], about["folds"]) == (study.size, study.folds)
    assert about["repeats"] == study.repeats
    candidates = about["scratch_candidates"]
    assert set(candidates) == set(study.scratch)
    assert about["scratch"] == tuning.best_scratch(data, candidates)
    recipes = {"fine_tune": study.fine_tune, "scratch": study.scratch[about["scratch"]]}
    for name, recipe in recipes.items():
        stored = about["settings"][name]
        assert {k: v for k, v in recipe.to_dict().items() if k in stored} == stored


@pytest.mark.parametrize("data", tuning.STUDIES)
def test_fine_tuning_lies_above_scratch_in_both_frameworks(data):
    runs, _ = tuning.load_tuning(data)
    for framework in ("torch", "keras"):
        d = tuning.tuned_difference(data, runs, framework, "fine_tune", "scratch")
        assert d.low > 0


def made(strategy, repeat, right):
    """Runs of all folds of a repeat; `right` says for each image whether it is."""
    where = tuning._dealt("photos", repeat)
    return [
        tuning.Run(
            "torch",
            strategy,
            repeat,
            k,
            1.0,
            1,
            {t: right[t][where[t] == k] for t in where},
            {},
        )
        for k in range(4)
    ]


def test_a_difference_is_paired_over_the_models_that_both_have():
    n = {t: len(d) for t, d in tuning.tuning_images("photos", size=16).items()}
    rng = np.random.default_rng(0)
    a, b = ({t: rng.random(k) < p for t, k in n.items()} for p in (0.8, 0.5))
    runs = made("probe", 0, a) + made("probe", 1, b) + made("scratch", 0, b)
    d = tuning.tuned_difference("photos", runs, "torch", "probe", "scratch")
    where = tuning._dealt("photos", 0)["cutout"]
    kept = where != tuning.VALIDATION
    rows = [
        [np.where(where == k, r["cutout"], np.nan)[kept] for k in range(4)]
        for r in (a, b)
    ]
    groups = tuning.tuning_images("photos", size=16)["cutout"].groups[kept]
    expected = paired_interval(*map(np.stack, rows), groups, level=0.95)
    assert d == pytest.approx(expected)
    table, _ = tuning.tuned_table("photos", runs, "torch", "probe")
    assert len(table) == 8


def test_a_study_goes_on_where_it_was(tmp_path, monkeypatch):
    """With `resume`, what the record holds does not run again."""
    todo = [("torch", "majority", 0, k) for k in range(4)]
    monkeypatch.setattr(tuning, "planned", lambda data, frameworks: todo)
    scratch = tuning.load_tuning("photos")[1]["scratch_candidates"]

    def study(resume):
        told = []
        tuning.study_tuning(
            "photos",
            scratch=scratch,
            resume=resume,
            path=tmp_path / "a.json",
            say=told.append,
        )
        return len(told)

    assert (study(False), study(True), study(False)) == (4, 0, 4)
    joined = tuning.join_tuning("photos", [tmp_path / "a.json"], tmp_path / "b.json")
    runs, about = tuning.load_tuning("photos", joined)
    assert [r[:4] for r in runs] == todo and about["scratch"] in scratch


def test_mistakes_get_a_sentence():
    with pytest.raises(BadValue, match="Did you mean 'photos'"):
        tuning.load_tuning("photo")
    with pytest.raises(BadValue, match="expected one of majority"):
        tuning.run_tuning("photos", "torch", "prob")
    with pytest.raises(BadValue, match="no runs of 'probe'"):
        tuning.tuned_table("photos", [], "torch", "probe")
