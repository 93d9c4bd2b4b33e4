"""What the clinics use to look at programs that fail."""

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.practice.clinic import Stop, counts, mended, stops, what_happens


def raises(error):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError("\n  b"), "ValueError: b"),
        (ValueError(), "ValueError"),
        (ImportError("no x from 'y' (/home/me/y.py)"), "ImportError: no x from 'y'"),
        (ImportError("no x from 'y' (C:\\me\\y.py)"), "ImportError: no x from 'y'"),
        (TypeError("got <f at 0x7f00aa>"), "TypeError: got <f>"),
        (ValueError("\x1b[1mred\x1b[0m"), "ValueError: red"),
    ],
)
def test_an_error_is_its_class_and_first_line_without_places(error, said):
    assert what_happens(raises(error)) == said


def test_long_lines_are_cut_and_long_values_left_out():
    assert len(what_happens(raises(ValueError("word " * 200)))) < 230
    assert what_happens(lambda: list(range(1000))) == "it runs"
    assert what_happens(lambda: 3) == "it runs, and returns 3"


def test_prints_of_the_program_are_not_shown_and_arguments_are_passed(capsys):
    assert (
        what_happens(lambda a, b: print(a) or a + b, 1, b=2) == "it runs, and returns 3"
    )
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_not_caught():
    with pytest.raises(KeyboardInterrupt):
        what_happens(raises(KeyboardInterrupt()))


def two(n):
    a = n + missing  # noqa: F821
    return a / 0


def test_stops_are_told_in_order_and_mending_leaves_the_program_alone():
    found = stops(two, [("missing", "1"), ("/ 0", "/ 2")], 3)
    assert [s.error for s in found] == [
        "NameError: name 'missing' is not defined",
        "ZeroDivisionError: division by zero",
    ]
    assert found[1] == Stop("return a / 0", "ZeroDivisionError: division by zero")
    assert mended(two, ("missing", "1"), ("/ 0", "/ 2"))(3) == 2
    assert what_happens(two, 3).startswith("NameError")


def test_a_repair_that_was_not_needed_or_not_enough_is_refused():
    with pytest.raises(BadValue, match="still stops: ZeroDivisionError"):
        stops(two, [("missing", "1")], 3)
    with pytest.raises(BadValue, match="already runs"):
        stops(two, [("missing", "1"), ("/ 0", "/ 2"), ("/ 2", "/ 3")], 3)
    with pytest.raises(BadValue, match="is 0 times"):
        mended(two, ("nowhere", "x"))
    with pytest.raises(BadValue, match="made with def"):
        mended(print, ("a", "b"))


def test_a_stop_before_the_first_line_is_the_call():
    found = stops(two, [("def two(n)", "def two(n=1)"), ("missing", "1"), ("/ 0", "")])
    assert found[0].line == "the call" and found[0].error.startswith("TypeError")


def test_both_frameworks_are_counted():
    torch, keras = load_torch(), load_keras()
    with torch.device("meta"):
        net = torch.nn.Linear(25_088, 4096)
    assert (
        counts(net) == (102_764_544,) * 2
        and str(counts(net)) == "102,764,544 of 102,764,544"
    )
    net.requires_grad_(False)
    assert counts(net).moving == 0
    twin = keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
        ]
    )
    assert counts(twin) == (15 + 3 + 6, 15 + 3 + 12)
    twin.trainable = False
    assert counts(twin).moving == 0 and counts(twin).all == sum(
        np.prod(w.shape) for w in twin.weights
    )
