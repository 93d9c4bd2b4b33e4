"""Runs saved before the training loops moved to the `trainer` room still load, predict
and resume. `saved_runs.py` made them, with the code of that day."""

import json
import zipfile

import numpy as np
import pytest
import saved_runs
from PIL import Image
from typer.testing import CliRunner

from transfer_course import fine_tune, load_result
from transfer_course.cli import app
from transfer_course.engine.checkpoints import _read


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(saved_runs.FOLDER.with_suffix(".zip")) as z:
        z.extractall(folder)
    return folder


@pytest.fixture(params=["torch", "keras"])
def framework(request):
    return request.param


@pytest.fixture
def expected(kept, framework):
    return np.load(kept / f"{framework}-expected.npz")


def test_a_saved_run_loads_and_predicts(kept, framework, expected):
    result = load_result(kept / f"{framework}-run")
    assert result.framework == framework and result.classes == saved_runs.CLASSES
    assert result.recipe == saved_runs.recipe()
    assert len(result.history) == 4 and result.best_epoch
    probabilities = result.predict(saved_runs.data(2).images)
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)


def test_a_saved_run_predicts_from_the_command_line(
    kept, framework, expected, tmp_path
):
    Image.fromarray(saved_runs.data(2).images[0]).save(tmp_path / "one.png")
    run = str(kept / f"{framework}-run")
    done = CliRunner().invoke(
        app, ["predict", run, str(tmp_path / "one.png"), "--json"]
    )
    assert done.exit_code == 0, done.output
    best = saved_runs.CLASSES[expected["probabilities"][0].argmax()]
    assert best in json.dumps(json.loads(done.stdout))


def test_an_interrupted_run_resumes_and_ends_where_it_would_have(
    kept, framework, expected
):
    folder = kept / f"{framework}-checkpoint"
    _, texts = _read(folder / "checkpoint.safetensors")
    before = texts["state"]["history"]
    net = saved_runs.weights(kept / "again.safetensors", framework)
    result = fine_tune(
        net,
        saved_runs.data(0),
        saved_runs.data(1),
        saved_runs.recipe(),
        progress=False,
        checkpoint=folder,
    )
    assert before and result.history[: len(before)] == before, "begun anew"
    losses = expected["step_losses"]
    assert len(texts["state"]["losses"]) < len(losses)
    np.testing.assert_allclose(result.step_losses, losses, rtol=1e-3)
    probabilities = result.predict(saved_runs.data(2).images)
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-3)
