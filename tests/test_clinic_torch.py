"""What lesson 34 does not show itself.

`evaluate`, the two functions that foresee how much memory training takes, what the
graders use, and the record of the study.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_torch
from transfer_course.practice import clinic_torch as clinic
from transfer_course.practice.clinic_torch import (
    activation_bytes,
    evaluate,
    kept_for_backward,
)
from transfer_course.practice.loop import fit
from transfer_course.vision.evaluate import confusion_matrix, scores

torch = load_torch()
nn = torch.nn
FEW = settings(max_examples=15, deadline=None, derandomize=True)


def small():
    """A network with everything that behaves differently in training.

    Dropout, BatchNorm, an in-place ReLU.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 3),
    )


def samples(n=23, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=rng), torch.randint(
        0, 3, (n,), generator=rng
    )


@FEW
@given(st.integers(1, 23), st.integers(0, 5))
def test_no_batch_size_changes_the_result(size, seed):
    net, (x, y) = small(), samples(seed=seed)
    whole = evaluate(net, [(x, y)])
    cut = evaluate(net, list(zip(x.split(size), y.split(size), strict=True)))
    np.testing.assert_allclose(cut["loss"], whole["loss"], rtol=1e-5)
    assert (
        cut["accuracy"] == whole["accuracy"]
        and (cut["confusion"] == whole["confusion"]).all()
    )


def test_it_is_torchs_loss_and_the_courses_scores():
    net, (x, y) = small().eval(), samples()
    with torch.no_grad():
        logits = net(x)
    got, p = evaluate(net, [(x, y)]), logits.argmax(1).numpy()
    np.testing.assert_allclose(
        got.pop("loss"), nn.CrossEntropyLoss()(logits, y).item(), rtol=1e-6
    )
    assert (got.pop("confusion") == confusion_matrix(y.numpy(), p, 3)).all()
    assert got == scores(y.numpy(), p, 3)


def test_the_network_is_left_as_it_was():
    net, (x, y) = small().train(), samples()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    evaluate(net, [(x, y)])
    assert [m.training for m in net] == [True, False, True, True, True, True, True]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_modes_come_back_when_a_batch_is_bad():
    net, (x, y) = small().train(), samples()
    with pytest.raises(BadValue):
        evaluate(net, [(x, y[:, None])])
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    "labels", [lambda y: y[:, None], lambda y: y[:5]], ids=["a column", "too few"]
)
def test_labels_that_do_not_belong_to_the_images_are_refused(labels):
    x, y = samples()
    with pytest.raises(BadValue, match=r"expected .* (image|row)"):
        evaluate(small(), [(x, labels(y))])


def test_a_view_that_mixes_images_is_refused():
    class Mixing(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3)

    x, y = samples()
    with pytest.raises(BadValue, match="flatten"):
        evaluate(Mixing(), [(x, y)])


def test_an_empty_loader_is_refused():
    with pytest.raises(BadValue, match="no batch"):
        evaluate(small(), [])


@FEW
@given(st.integers(1, 6), st.sampled_from([8, 12, 16]))
def test_foreseen_sizes_are_the_real_ones(batch, side):
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7)
    )
    x, real = torch.randn(batch, 3, side, side), {}
    net(x)
    for name, layer in net.named_children():
        x = layer(x)
        real[name] = x.numel() * x.element_size()
    seen = activation_bytes(net, (batch, 3, side, side))
    assert seen.pop("input") == batch * 3 * side * side * 4
    assert seen == real | {"2": 0}, "flatten is a view and takes nothing"


def test_an_in_place_layer_takes_nothing_more():
    seen = activation_bytes(small(), (2, 3, 8, 8))
    assert seen["0"] == seen["1"] == 2 * 4 * 64 * 4 and seen["2"] == 0


def test_a_layer_that_is_used_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    assert activation_bytes(Twice(), (3, 4))["fc"] == 2 * 3 * 4 * 4


def test_of_a_layer_with_several_outputs_every_tensor_counts():
    seen = activation_bytes(nn.GRU(8, 4, batch_first=True), (2, 5, 8))
    assert seen["output"] == (2 * 5 * 4 + 2 * 4) * 4, "every step, and the last state"


def really_kept(net, x):
    """Bytes of the different memory that autograd holds after a real forward pass.

    Parameters and buffers are left out.
    """
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = net(x)
    return sum(
        t.untyped_storage().nbytes() for k, t in kept.items() if k not in own
    ), out


@pytest.mark.parametrize("batch", [1, 7])
def test_what_autograd_will_keep_is_what_it_keeps(batch):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 3),
    )
    kept, _ = really_kept(net, torch.randn(batch, 3, 8, 8))
    assert kept_for_backward(net, (batch, 3, 8, 8)) == kept > 0


def test_a_frozen_network_keeps_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).requires_grad_(
        False
    )
    assert kept_for_backward(net, (2, 3, 8, 8)) == 0


def test_foreseeing_does_not_touch_the_network():
    net = small().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for f in (activation_bytes, kept_for_backward):
        f(net, (2, 3, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert (
        next(net.parameters()).device.type == "cpu"
        and net.training
        and not net[6]._forward_hooks
    )


def test_fit_is_the_loop_written_out_and_weights_by_images():
    x, y = samples()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    twin = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    twin.load_state_dict(net.state_dict())
    batches = list(zip(x.double().split(16), y.split(16), strict=True))
    told = fit(net, batches, torch.optim.SGD(net.parameters(), lr=0.1), 2)
    for epoch in range(2):
        total = 0
        for images, labels in batches:
            loss = nn.functional.cross_entropy(twin(images), labels)
            grads = torch.autograd.grad(loss, twin.parameters())
            with torch.no_grad():
                for p, g in zip(twin.parameters(), grads, strict=True):
                    p -= 0.1 * g
            total += loss.item() * len(labels)
        assert abs(told[epoch] - total / len(x)) < 1e-9
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("absent", list(product([False, True], repeat=3)))
def test_every_missing_relu_is_found(absent):
    torch.manual_seed(2)
    net = clinic.with_head(clinic.two_blocks())
    for part, name, gone in zip(
        (net.blocks, net.blocks, net), ("relu1", "relu2", "relu"), absent, strict=True
    ):
        if gone:
            setattr(part, name, nn.Identity())
    told = clinic.unlike_reference(net, torch.randn(4, 3, 32, 32))
    places = ("the first conv", "the second conv", "the first linear")
    assert [place in told for place in places] == list(absent)
    assert bool(told) == any(absent)


def test_other_mathematics_with_the_same_weights_is_found():
    net = clinic.with_head(clinic.two_blocks())
    net.relu = nn.GELU()
    assert "other logits" in clinic.unlike_reference(net, torch.randn(4, 3, 32, 32))


def test_watch_leaves_no_hooks():
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), samples()
    with clinic.Watch() as watch:
        fit(net, [(x, y)], torch.optim.SGD(net.parameters(), lr=0.1), 3)
    fit(net, [(x, y)], torch.optim.SGD(net.parameters(), lr=0.1), 3)
    assert (watch.steps, watch.largest) == (3, 23)


@pytest.mark.parametrize("what", [lambda t: t, lambda t: t.state_dict])
def test_a_pickled_object_that_load_refuses_is_seen(what):
    def program(trained, file):
        torch.save(what(trained), file)
        return torch.load(file)

    seen = clinic.watch_file(program, clinic.two_blocks())
    assert seen.written and seen.network is None and seen.stored is None


def test_an_error_that_is_not_typical_is_raised():
    with pytest.raises(ZeroDivisionError):
        clinic.attempt(lambda: 1 / 0)


@pytest.mark.parametrize("deviation, difference", [(0.08, 0.05), (0.1, 0.08)])
def test_the_planned_seeds_see_the_difference_in_nine_studies_of_ten(
    deviation, difference
):
    n, rng = clinic.seeds_needed(deviation, difference), np.random.default_rng(0)
    means = rng.normal(difference, deviation, (20_000, n)).mean(1)
    seen = (means - 2.5758 * deviation / n**0.5 > 0).mean()
    assert 0.89 < seen < 0.93


def test_the_record_is_complete():
    runs, record = clinic.load_blocks()
    wanted = set(product(clinic.STARTS, clinic.SEEDS))
    assert {(r.start, r.seed) for r in runs} == wanted and len(runs) == len(wanted)
    assert len(record["source_accuracy"]) == len(clinic.SEEDS)
    tested = {seed: len(clinic.target_parts(seed)[1]) for seed in clinic.SEEDS[:3]}
    for run in runs:
        assert list(run.correct) == [str(epoch) for epoch in clinic.EPOCHS]
        assert list(run.losses) == list(run.correct)
        if run.seed in tested:
            assert {len(c) for c in run.correct.values()} == {tested[run.seed]}


def test_the_heads_were_trained_to_the_end():
    for run in clinic.load_blocks()[0]:
        losses = list(run.losses.values())
        assert losses[0] > 1 and losses[-1] < 0.1, (run.start, run.seed)


def test_seeds_differ_in_teacher_and_split():
    blocks = [clinic.untrained_blocks(seed) for seed in (0, 1)]
    assert not clinic.same_weights(*blocks)
    first, second = (set(clinic.target_parts(seed)[1].groups) for seed in (0, 1))
    assert first != second


def test_tables_put_each_result_in_the_column_of_its_image():
    runs = clinic.load_blocks()[0][:4]
    tables, identities = clinic.blocks_tables(runs)
    for run in runs:
        row = tables[run.start][-1][run.seed - clinic.SEEDS[0]]
        test = clinic.target_parts(run.seed)[1]
        here = ~np.isnan(row)
        assert set(identities[here]) == set(test.groups)
        for identity in set(test.groups):
            last = run.correct[str(clinic.EPOCHS[-1])]
            stored = last[test.groups == identity]
            assert np.nansum(row[identities == identity]) == stored.sum()
