"""practice.letters.

Halves of forms never meet, the study goes on where it stopped, and the record is
complete.
"""

import json

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.practice import letters
from transfer_course.practice.letters import (
    CELLS,
    SEEDS,
    SETTINGS,
    LetterRun,
    as_tables,
    form_halves,
    load_letters,
    study_letters,
)


@pytest.fixture(scope="module")
def digits():
    return letters.target()


def test_validation_forms_are_not_compared_on(digits):
    tried = letters.target(validation=True)
    assert set(tried.groups) == set(letters.VALIDATION_FORMS) and not set(
        tried.groups
    ) & set(digits.groups)
    assert len(set(digits.groups)) == 8


@pytest.mark.parametrize("seed", range(4))
def test_halves_of_forms_never_meet(digits, seed):
    pairs = form_halves(digits, seed)
    for learn, test in pairs:
        assert not set(digits.groups[learn]) & set(digits.groups[test])
        assert set(digits.labels[learn]) == set(range(10))
    assert sorted(np.concatenate([test for _, test in pairs])) == list(
        range(len(digits))
    )
    firsts = {tuple(form_halves(digits, s)[0][0]) for s in range(6)}
    assert len(firsts) > 1  # another seed deals the forms otherwise


def test_labels_are_drawn_from_the_other_half(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        letters,
        "answers",
        lambda way, train, test, *a: (
            seen.append((train, test)) or np.ones(len(test), bool)
        ),
    )
    run = letters.run_way("tuned", 5, 1, digits, {})
    assert run.correct.all() and len(run.correct) == len(digits) and len(seen) == 2
    for train, test in seen:
        assert set(train.counts().values()) == {5} and not set(train.groups) & set(
            test.groups
        )


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    done = []

    def run_seed(seed, data):
        if seed == 2 and 2 not in done:
            done.append(2)
            raise KeyboardInterrupt
        done.append(seed)
        return [LetterRun("tuned", 1, seed, 0.0, np.arange(4) > seed)]

    monkeypatch.setattr(letters, "run_seed", run_seed)
    monkeypatch.setattr(
        letters,
        "try_settings",
        lambda seed: [["tuned", 50, 0.001, 1, seed, "form 01", 0.5]],
    )
    path = tmp_path / "letters.json"
    with pytest.raises(KeyboardInterrupt):
        study_letters(path, seeds=(0, 1, 2), say=lambda line: None)
    assert [r.seed for r in load_letters(path)[0]] == [0, 1]
    study_letters(path, seeds=(0, 1, 2), say=lambda line: None)
    runs, about = load_letters(path)
    assert done == [0, 1, 2, 2] and [r.seed for r in runs] == [0, 1, 2]
    assert sorted(row[4] for row in about["validation"]) == sorted(
        letters.VALIDATION_SEEDS
    )
    assert as_tables(runs)["tuned", 1].sum(1).tolist() == [3, 2, 1]
    monkeypatch.setitem(SETTINGS, "tuned", (10, 1e-3))
    with pytest.raises(BadValue, match="other settings"):
        study_letters(path, seeds=(3,))


def test_an_unknown_way_is_named(digits):
    with pytest.raises(BadValue, match="way is 'guess'; expected one of tuned"):
        letters.answers("guess", digits, digits, {}, 0)


def test_the_record_is_complete():
    runs, about = load_letters()
    expected = {(*cell, s) for cell in [*CELLS, ("font_digits", 0)] for s in SEEDS}
    assert {(r.way, r.budget, r.seed) for r in runs} == expected and len(runs) == len(
        expected
    )
    assert {len(r.correct) for r in runs} == {len(letters.target())}
    assert about["settings"] == json.loads(
        json.dumps({way: list(s) for way, s in SETTINGS.items()})
    )
    assert not set(letters.VALIDATION_SEEDS) & set(SEEDS)
