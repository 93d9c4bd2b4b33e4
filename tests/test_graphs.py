"""The drawn computational graph: its gradients, its steps and its words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.classroom.graphs import draw_graph, flow_back

EDGES = [("x", "h", 0.5), ("w", "h", 2), ("h", "p", 3), ("h", "q", -1)]
EDGES += [("p", "L", 2), ("q", "L", -2)]
VALUES = dict(x=2, w=0.5, h=1, p=3, q=-1, L=2)
PLACES = dict(x=(0, 0.5), w=(0, -0.5), h=(1, 0), p=(2, 0.5), q=(2, -0.5), L=(3, 0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 7), st.integers(0, 999))
def test_gradients_add_up_over_all_ways(n, seed):
    """With an arrow between any two nodes: the inverse of a triangular matrix."""
    rng = np.random.default_rng(seed)
    slopes = np.triu(rng.normal(0, 1, (n, n)), 1)
    edges = [(str(i), str(j), slopes[i, j]) for i in range(n) for j in range(i + 1, n)]
    rng.shuffle(edges)
    edges = [(str(i), str(j), float(d)) for i, j, d in edges]
    want = np.linalg.inv(np.eye(n) - slopes)[:, -1]
    got = flow_back(edges, str(n - 1))
    np.testing.assert_allclose([got[str(i)] for i in range(n)], want, rtol=1e-9)


@pytest.mark.parametrize(
    "edges", [[("a", "b", 1), ("b", "a", 1), ("b", "L", 1)], [("a", "b", 1)]]
)
def test_a_circle_and_a_dead_end_are_refused(edges):
    with pytest.raises(ValueError, match="form a circle"):
        flow_back(edges, "L")


def words(figure):
    """All that is written in a figure."""
    return [t.get_text() for t in [*figure.axes[0].texts, *figure.texts]]


@pytest.mark.parametrize("step, known", [(0, 0), (1, 1), (4, 4), (6, 6), (None, 6)])
def test_a_step_shows_as_many_gradients(step, known):
    texts = words(draw_graph(VALUES, EDGES, PLACES, step=step))
    assert sum(t.startswith("∂L/∂") for t in texts) == known
    assert {"0.5", "3", "−1", "−2"} <= set(texts)  # the local derivatives


def test_the_title_writes_the_sum_down():
    texts = words(draw_graph(VALUES, EDGES, PLACES, step=4, formulas=dict(h="h = w·x")))
    assert "Step 4: ∂L/∂h = 2 · 3 + (−2) · (−1) = 8" in texts
    assert "h = w·x\n1" in texts and "p\n3" in texts


@pytest.mark.parametrize("step", [-1, 7])
def test_a_step_that_does_not_exist_is_refused(step):
    with pytest.raises(ValueError, match="expected 0 to 6"):
        draw_graph(VALUES, EDGES, PLACES, step=step)
