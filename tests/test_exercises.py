"""The classroom, where a lesson's own cells don't look.

What a check, a guess, a widget and a claim do.
"""

import json
import sys

import numpy as np
import pytest

from transfer_course.classroom import claims, exercises, glossary, widgets


@pytest.fixture
def twice():
    """An exercise that asks for a function which doubles."""

    @exercises.exercise
    def twice(answer, hint):
        "Twice is right."
        hint(answer(3) != 9, "That is the square.")
        hint(answer(3) == 6, "Twice 3 is 6.")

    assert twice is ...
    yield
    exercises._GRADERS.pop("twice")


def test_verdicts(twice):
    assert exercises.grade("twice", lambda x: 2 * x) == ("right", "Twice is right.")
    assert exercises.grade("twice", lambda x: x * x) == (
        "not quite",
        "That is the square.",
    )
    for stub in (..., None, lambda x: None, lambda x: ...):
        assert exercises.grade("twice", stub)[0] == "not yet"
    verdict, why = exercises.grade("twice", lambda x: x / 0)
    assert verdict == "not quite" and "ZeroDivisionError" in why
    assert exercises.grade("twice", 6)[0] == "not quite", (
        "a value where a function is asked for"
    )


def test_check_finds_the_name_and_never_stops_a_notebook(twice, capsys, monkeypatch):
    monkeypatch.delenv("TRANSFER_COURSE_STRICT", raising=False)
    monkeypatch.setitem(globals(), "twice", lambda x: x * x)
    exercises.check("twice")
    monkeypatch.delitem(globals(), "twice")
    exercises.check("twice")
    assert capsys.readouterr().out == (
        "✗ not quite: That is the square.\n"
        "… not yet: write twice in the cell above and run it.\n"
    )
    monkeypatch.setenv("TRANSFER_COURSE_STRICT", "1")
    with pytest.raises(AssertionError, match="not yet"):
        exercises.check("twice")


def test_a_grader_that_fails_does_not_show_its_own_line(tmp_path):
    """The line in the message is the learner's, never the checker's."""
    code = (
        "@exercise\ndef half(answer, hint):\n    'Yes.'\n    float(answer(2)) + []\n"
        "def bad(x):\n    return x / 0\n"
    )
    names = {"exercise": exercises.exercise}
    exec(compile(code, "<cell>", "exec"), names)
    told = exercises.grade("half", lambda x: [x])[1]
    assert "TypeError" in told and " at `" not in told
    assert "ZeroDivisionError" in exercises.grade("half", names["bad"])[1]
    exercises._GRADERS.pop("half")


def test_a_condition_may_be_a_tensor():
    torch = pytest.importorskip("torch")
    exercises.hint(torch.tensor(True), "never")
    with pytest.raises(exercises.Hint):
        exercises.hint(torch.tensor([True, False]), "one is wrong")


def test_nothing_to_look_at_is_not_good():
    for empty in ([], np.zeros((0, 3)), np.array([]) > 1):
        with pytest.raises(exercises.Hint, match="empty"):
            exercises.hint(empty, "empty")


def test_mistakes_fail_where_a_hint_does_not_name_the_mistake(twice):
    wrong = {"square": lambda x: x * x, "is 6": lambda x: 5, "Twice": lambda x: 0}
    exercises.mistakes("twice", wrong)
    with pytest.raises(AssertionError, match="expected a hint"):
        exercises.mistakes("twice", wrong | {"square": lambda x: 2 * x})
    with pytest.raises(ValueError, match="at least three"):
        exercises.mistakes("twice", {"square": lambda x: x * x, "6": lambda x: 5})


def test_a_right_answer_that_is_refused_is_reported(twice):
    exercises.accepted("twice", [lambda x: 2 * x, lambda x: x + x])
    with pytest.raises(AssertionError, match="right answer 1 is not quite"):
        exercises.accepted("twice", [lambda x: 2 * x, lambda x: x])
    with pytest.raises(ValueError, match="at least two"):
        exercises.accepted("twice", [lambda x: 2 * x])


def test_a_slider_that_was_not_moved_is_no_guess(capsys):
    guess = widgets.predict_first("How much?", (0, 1))
    guess.reveal(0.25)
    control = widgets._asked(guess).children[1]
    control.value = 0.75
    guess.reveal(0.25)
    out = capsys.readouterr().out
    assert (
        "You made no guess. It is 0.25." in out
        and "You guessed 0.75. It is 0.25, 0.50 away." in out
    )


def test_a_control_redraws(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "_display", lambda box, **kw: shown.append(box))
    widgets.explore(
        lambda depth, style: f"{depth} {style}",
        "words",
        depth=[0, 1, 2],
        style=["a", "b"],
    )
    depth, style, view = shown[0].children
    assert view.value == "<pre>0 a</pre>"
    depth.value, style.value = 2, "b"
    assert view.value == "<pre>2 b</pre>"


def test_a_control_can_start_in_the_middle(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "_display", lambda box, **kw: shown.append(box))
    choices = dict(depth=[0, 1, 2], width=[5, 6])
    widgets.explore(
        lambda depth, width: f"{depth} {width}", "words", start={"depth": 1}, **choices
    )
    *controls, view = shown[0].children
    assert [control.value for control in controls] == [1, 5]
    assert list(controls[0].options) == [0, 1, 2]
    assert view.value == "<pre>1 5</pre>"


def test_a_claim_asserts_its_expectation_and_is_recorded(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "claims.json"
    monkeypatch.setenv("TRANSFER_COURSE_RECORD", str(path))
    claims.claim("1 a", (0.2, 0.1, 0.3))
    claims.claim("2 b", (0.2, -0.1, 0.3), expected="unclear")
    claims.claim("3 c", (-0.2, -0.3, -0.1), expected="fails")
    monkeypatch.setenv("TRANSFER_COURSE_STRICT", "1")
    with pytest.raises(AssertionError, match="found 'unclear'"):
        claims.claim("2 b", (0.2, -0.1, 0.3))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [found[k]["outcome"] for k in ("1 a", "2 b", "3 c")] == [
        "holds",
        "unclear",
        "fails",
    ]
    monkeypatch.delenv("TRANSFER_COURSE_RECORD")
    claims.claim("4 d", (0.2, 0.1, 0.3))
    assert "4 d" not in json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "difference",
    [(0.2, -0.1, 0.3), (-0.2, -0.3, -0.1), (float("nan"),) * 3, (0.2, -np.inf, np.inf)],
    ids=str,
)
def test_a_learners_claim_never_stops_a_notebook(difference, monkeypatch, capsys):
    monkeypatch.delenv("TRANSFER_COURSE_STRICT", raising=False)
    claims.claim("5 e", difference)
    assert (
        "expected 'holds'" not in (told := capsys.readouterr().out)
        and "The course found 'holds' here, and your run found" in told
    )


def test_glossary_is_sorted_and_whole():
    words = glossary.glossary()
    assert list(words) == sorted(words, key=str.lower)
    for term, (zh, meaning) in words.items():
        assert zh and meaning.endswith("."), term
    with pytest.raises(KeyError, match="fine-tuning"):
        glossary.terms("finetuning")


def test_the_classroom_needs_no_framework():
    code = (
        "from transfer_course.classroom import claims, exercises, glossary, pictures, "
        "widgets; "
        "import sys; "
        "print([m for m in ('torch', 'tensorflow', 'sklearn') if m in sys.modules])"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
