"""Settings follow from domains, tasks and labels in every case.

Weights count as copies, and rules survive a renaming.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.theory.taxonomy import (
    Domain,
    Problem,
    Task,
    derive,
    map_predicates,
    setting,
    weighted_least_squares,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)
DOMAINS = [
    Domain("pictures", "photos"),
    Domain("pictures", "sketches"),
    Domain("words", "photos"),
]
TASKS = [Task(["a", "b"], "what"), Task(["a", "c"], "what"), Task(["a", "b"], "where")]
CASES = list(product(DOMAINS, TASKS, (0, 3), (0, 3), (0, 3)))


@pytest.mark.parametrize("domain, task, s, t, u", CASES)
def test_the_name_is_the_definition(domain, task, s, t, u):
    source, target = Problem(DOMAINS[0], TASKS[0], s, 9), Problem(domain, task, t, u)
    same_domain, same_task = domain is DOMAINS[0], task is TASKS[0]
    found = setting(source, target)
    assert (found.name == "no transfer") == (same_domain and same_task)
    assert (found.name == "inductive") == (not same_task and t > 0)
    assert (found.name == "unsupervised") == (not same_task and s == t == 0 and u > 0)
    assert (found.name == "transductive") == (
        same_task and not same_domain and s > 0 and t == 0 and u > 0
    )
    assert (found.spaces == "heterogeneous") == (domain is DOMAINS[2])
    shifted = same_task and not same_domain and t > 0
    others = ("inductive", "transductive") if u else ("inductive",)
    assert found.others == (others if shifted else ())
    assert (
        found.name
        in (
            "no transfer",
            "inductive",
            "unsupervised",
            "transductive",
            "none of the three",
        )
        and found.usual
    )


def test_self_taught_learning_is_inductive_and_a_labelled_shift_has_no_name():
    assert (
        setting(
            Problem(DOMAINS[0], TASKS[1], 0, 9), Problem(DOMAINS[1], TASKS[0], 5)
        ).usual
        == "self-taught learning"
    )
    assert (
        setting(
            Problem(DOMAINS[0], TASKS[0], 9), Problem(DOMAINS[1], TASKS[0], 5, 9)
        ).usual
        == "supervised domain adaptation"
    )
    assert (
        setting(Problem(DOMAINS[0], TASKS[0], 9), Problem(DOMAINS[1], TASKS[0])).usual
        == "domain generalisation"
    )


def test_a_task_is_its_set_of_labels_and_its_rule():
    assert Task(["x", "y"], "r") == Task(("y", "x", "x"), "r")
    assert Task(["x"], "r") != Task(["x"], "other")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Task("cat", "what"),
        lambda: Task([], "what"),
        lambda: Problem("photos", TASKS[0]),
        lambda: Problem(DOMAINS[0], TASKS[0], -1),
        lambda: setting(DOMAINS[0], TASKS[0]),
        lambda: weighted_least_squares(np.ones((3, 1)), np.ones(2), np.ones(3)),
        lambda: weighted_least_squares(np.ones((3, 1)), np.ones(3), -np.ones(3)),
        lambda: weighted_least_squares(np.ones((3, 1)), np.ones(3), np.zeros(3)),
        lambda: derive((("p", "X"), ("q", "Y")), {("q", "a")}),
        lambda: map_predicates((("p", "X"), ("q", "X")), {("r", "a")}),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make):
    with pytest.raises(ValueError, match="expected|have to be"):
        make()


@quick
@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(
        lambda w: sum(x > 0 for x in w) >= 2
    ),
    st.integers(0, 99),
)
def test_a_weight_of_three_is_three_copies(weights, seed):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    copies = np.repeat(np.arange(6), weights)
    want = np.linalg.lstsq(X[copies], y[copies], rcond=None)[0]
    np.testing.assert_allclose(weighted_least_squares(X, y, weights), want, atol=1e-8)
    np.testing.assert_allclose(
        weighted_least_squares(X, y, 7 * np.array(weights)), want, atol=1e-8
    )


things = st.sampled_from("abc")
facts_of = st.sets(
    st.tuples(st.sampled_from(["p", "q"]), things, things)
    | st.tuples(st.just("one"), things),
    max_size=12,
)
RULES = [
    (("head", "X", "Z"), ("p", "X", "Y"), ("q", "Y", "Z")),
    (("head", "X"), ("p", "X", "X")),
    (("head", "X", "Y"), ("one", "X"), ("one", "Y")),
    (("head", "Y"), ("p", "X", "Y"), ("p", "Y", "X"), ("one", "X")),
]


@quick
@given(st.sampled_from(RULES), facts_of)
def test_derive_is_trying_every_assignment(rule, facts):
    head, *body = rule
    names = sorted({a for atom in body for a in atom[1:]})
    want = set()
    for values in product("abc", repeat=len(names)):
        way = dict(zip(names, values, strict=True))
        if all((atom[0], *(way[a] for a in atom[1:])) in facts for atom in body):
            want.add((head[0], *(way[a] for a in head[1:])))
    assert derive(rule, facts) == want


@quick
@given(st.permutations(["u", "v", "w"]))
def test_a_renamed_domain_is_mapped_back(names):
    rule = (("boss", "X", "Y"), ("team", "X", "T"), ("leads", "Y", "T"))
    facts = {
        ("team", "a", "1"),
        ("team", "b", "1"),
        ("team", "c", "2"),
        ("leads", "d", "1"),
        ("leads", "e", "2"),
    }
    to = dict(zip(["boss", "team", "leads"], names, strict=True))
    there = {(to[f[0]], *f[1:]) for f in facts | derive(rule, facts)}
    found, agreement = map_predicates(rule, there)
    assert agreement == 1 and derive(found, there) == {
        f for f in there if f[0] == to["boss"]
    }
