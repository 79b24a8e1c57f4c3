"""What sbi's builders see of large data, and what training needs beyond them."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import sbi.inference
import torch
from sbi.neural_nets import factory, posterior_nn
from sbi.utils import BoxUniform
from sbi.utils.sbiutils import handle_invalid_x, standardizing_net, z_standardization
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import scaling
from sbi_ignite import (
    FMPE,
    MNLE,
    MNPE,
    NLE,
    NPE,
    NPE_A,
    NPSE,
    NRE,
    Callback,
    DataError,
    TrainConfig,
    load_estimator,
    patch_sbi,
)
from sbi_ignite.bridge import fit, network_builder, split, train
from sbi_ignite.bridge.networks import describe_network
from sbi_ignite.data import lean_rows
from sbi_ignite.data.lean_rows import LeanRows

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
ROWS = 3_000
TRAIN = 2_700
FEW = 1_000
TYPED = TrainConfig(max_epochs=2, batch_size=500, seed=1)


def simulations(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return theta and x, of which no two rows are the same."""
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(rows, 2, generator=generator) - 1
    return theta, theta + 0.2 * torch.randn(rows, 2, generator=generator)


@pytest.fixture
def large(monkeypatch):
    """Let data of these tests count as large."""
    monkeypatch.setattr(network_builder, "ALL_ROWS_UP_TO", 2 * TRAIN - 1)
    monkeypatch.setattr(network_builder, "FEW_NUMBERS", 2 * FEW)
    monkeypatch.setattr(network_builder, "FEW_ROWS", 10)


@pytest.fixture
def built(monkeypatch):
    """Note what sbi's builders get and what they return."""
    notes = []

    def noting(build):
        def noted(batch_x, batch_y, **kwargs):
            net = build(batch_x=batch_x, batch_y=batch_y, **kwargs)
            weights = {name: value.clone() for name, value in net.state_dict().items()}
            notes.append(SimpleNamespace(x=batch_x, y=batch_y, weights=weights))
            return net

        return noted

    for name in ("maf", "mnle", "mnpe"):
        monkeypatch.setitem(factory.model_builders, name, noting(factory.model_builders[name]))
    for name in ("build_resnet_classifier", "build_vector_field_estimator", "build_mdn"):
        monkeypatch.setattr(factory, name, noting(getattr(factory, name)))
    return notes


def trained(trainer=NPE, *args, config=TYPED, data=None, builder=None, **kwargs):
    arguments = {} if builder is None else {"density_estimator": builder}
    inference = trainer(PRIOR, show_progress_bars=False, **arguments)
    inference.append_simulations(*(data or simulations()))
    inference.train(config, *args, **kwargs)
    return inference


def without_this(monkeypatch):
    """Let sbi build as it does by itself."""
    monkeypatch.setattr(train, "lean_building", lambda trainer, call: nullcontext())


def test_small_data_are_shown_as_a_whole_and_nothing_changes(built, monkeypatch):
    now = trained()
    state = torch.get_rng_state()
    theta, x = simulations()
    assert torch.equal(built[0].x, theta[now.train_indices])
    assert torch.equal(built[0].y, x[now.train_indices])
    without_this(monkeypatch)
    before = trained()
    assert torch.equal(state, torch.get_rng_state())
    same_weights(now._neural_net.state_dict(), before._neural_net.state_dict())


def same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("trainer", [NPE, NPE_A, NLE, NRE, FMPE, NPSE])
def test_of_large_data_a_builder_sees_few_rows_and_all_are_for_training(trainer, large, built):
    inference = trained(trainer)
    theta, x = simulations()
    rows = inference.train_indices[:FEW]
    seen = {True: built[0].x, False: built[0].y}
    assert torch.equal(seen[trainer is not NLE], theta[rows])
    assert torch.equal(seen[trainer is NLE], x[rows])
    assert len(inference.train_indices) == TRAIN


def test_few_rows_change_the_z_scores_little_and_else_nothing(large, built, monkeypatch):
    trained()
    state = torch.get_rng_state()
    without_this(monkeypatch)
    trained()
    assert torch.equal(state, torch.get_rng_state())
    few, all_rows = built
    assert (len(few.x), len(all_rows.x)) == (FEW, TRAIN)
    assert few.weights.keys() == all_rows.weights.keys()
    differing = [n for n, v in few.weights.items() if not torch.equal(v, all_rows.weights[n])]
    assert 0 < len(differing) <= 4  # mean and standard deviation of theta and of x
    for name in differing:
        torch.testing.assert_close(
            few.weights[name], all_rows.weights[name], rtol=network_builder.TOLERANCE, atol=0.05
        )


def test_one_seed_gives_one_network(large):
    first = trained()
    torch.rand(7)
    same_weights(first._neural_net.state_dict(), trained()._neural_net.state_dict())


def test_patched_sbi_shows_few_rows_too(large, built):
    with patch_sbi():
        trained(sbi.inference.NPE)
    assert len(built[0].x) == FEW


def test_the_sbi_form_shows_all_rows(large, built):
    inference = NPE(PRIOR, show_progress_bars=False).append_simulations(*simulations())
    with pytest.warns(UserWarning, match="not yet fully converged"):
        inference.train(max_num_epochs=1)
    assert len(built[0].x) == TRAIN


@pytest.mark.filterwarnings("ignore:The mixed neural density estimator assumes")
@pytest.mark.filterwarnings("ignore:Inferring num_categories")
@pytest.mark.parametrize("trainer", [MNLE, MNPE])
def test_mixed_data_are_shown_as_a_whole(trainer, large, built):
    theta, x = simulations()
    counts = torch.randint(0, 3, (ROWS, 1)).float()
    data = (theta, torch.cat([x[:, :1], counts], 1))
    if trainer is MNPE:
        data = (torch.cat([theta[:, :1], counts - 1], 1), x)
    trained(trainer, data=data)
    assert len(built[0].x) == TRAIN


def test_users_builders_and_embedding_nets_see_all_rows(large, built):
    seen = []

    def build(theta, x):
        seen.append(len(theta))
        return posterior_nn("maf")(theta, x)

    trained(builder=build)
    assert seen == [TRAIN]
    trained(builder=posterior_nn("maf", embedding_net=nn.Linear(2, 2)))
    assert len(built[-1].x) == TRAIN


def test_rows_that_a_user_splits_are_shown_as_a_whole(large, built):
    class InOrder(NPE):
        def get_dataloaders(self, *args, **kwargs):
            return super().get_dataloaders(*args, **kwargs)

    trained(InOrder)
    assert len(built[0].x) == TRAIN


@pytest.mark.filterwarnings("ignore:Data has constant values")
def test_all_rows_are_shown_where_few_do_not_tell_the_same(large, built):
    theta, x = simulations()
    x[:, 1] = 0.1
    constant = trained(data=(theta, x))
    assert len(built[-1].x) == FEW
    x[constant.train_indices[FEW], 1] = 1_000
    trained(data=(theta, x))
    assert len(built[-1].x) == TRAIN


HELD = {"_initialize_neural_network", "get_simulations"}


def test_nothing_is_left_on_the_trainer(large):
    inference = NPE(PRIOR, show_progress_bars=False).append_simulations(*simulations())

    class Look(Callback):
        def on_train_start(self, state):
            assert not HELD & vars(inference).keys()
            assert len(inference.train_indices) == TRAIN

    inference.train(TYPED, callbacks=[Look()])


def test_nothing_is_left_on_the_trainer_by_calls_that_fail(large):
    def fails(theta, x):
        raise ArithmeticError

    inference = NPE(PRIOR, density_estimator=fails, show_progress_bars=False)
    inference.append_simulations(*simulations())
    with pytest.raises(DataError):
        inference.train(TrainConfig(batch_size=10 * ROWS))
    assert not HELD & vars(inference).keys()
    with pytest.raises(ArithmeticError):
        inference.train(TYPED)
    assert not HELD & vars(inference).keys()
    assert len(inference.train_indices) == TRAIN


def test_a_run_directory_describes_and_continues_the_network(large, tmp_path, monkeypatch):
    described = []

    def noting(build, *tensors):
        described.append([len(tensor) for tensor in tensors])
        return describe_network(build, *tensors)

    monkeypatch.setattr(fit, "describe_network", noting)
    whole = trained(config=TrainConfig(max_epochs=4, batch_size=500, seed=1))
    trained(checkpoint=tmp_path / "run")
    longer = TrainConfig(max_epochs=4, batch_size=500, seed=1)
    continued = trained(config=longer, checkpoint=tmp_path / "run")
    assert continued.training_summary.resumed_from_epoch == 2
    same_weights(whole._neural_net.state_dict(), continued._neural_net.state_dict())
    assert described == [[FEW, FEW], [FEW, FEW]]
    loaded = load_estimator(tmp_path / "run")
    same_weights(loaded.state_dict(), continued._neural_net.state_dict())


def test_invalid_rows_are_found_in_whatever_chunks(monkeypatch):
    x = torch.randn(1_000, 3)
    x[0, 0] = x[999, 0] = torch.nan
    x[499, 1], x[500, 2] = torch.inf, -torch.inf
    for chunk in (1, 100, 2**20):
        monkeypatch.setattr(split, "_CHUNK", chunk)
        valid = split.valid_rows(x, True)
        assert set(range(1_000)) - set(valid.tolist()) == {0, 499, 500, 999}


BUILDERS = {
    "maf": lambda **kwargs: posterior_nn("maf", **kwargs),
    "mdn": lambda **kwargs: posterior_nn("mdn", **kwargs),
    "zuko_maf": lambda **kwargs: posterior_nn("zuko_maf", **kwargs),
    "with an embedding": lambda **kwargs: posterior_nn(
        "maf", embedding_net=nn.Linear(2, 2), **kwargs
    ),
}


@pytest.mark.filterwarnings("ignore:.*not yet fully converged")
@pytest.mark.parametrize("how", ["independent", "structured"])
@pytest.mark.parametrize("name", BUILDERS)
def test_rows_that_are_copied_once_give_the_network_that_sbi_builds(name, how, monkeypatch):
    def network(seed=5):
        torch.manual_seed(seed)
        builder = BUILDERS[name](z_score_theta=how, z_score_x=how)
        inference = NPE(PRIOR, density_estimator=builder, show_progress_bars=False)
        inference.append_simulations(*simulations())
        inference.train(max_num_epochs=1, training_batch_size=1_000)
        return inference._neural_net.state_dict()

    now, lean = network(), []
    monkeypatch.setattr(network_builder, "as_lean", lambda trainer, rows: lean.append(1) or rows)
    same_weights(now, network())
    assert lean


class Copies(TorchDispatchMode):
    """Count the results of operations with as many numbers as some rows, or more."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.found = numbers, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if (
            isinstance(result, torch.Tensor)
            and result.numel() >= self.numbers
            and result.untyped_storage().data_ptr() not in given
        ):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize("name", BUILDERS)
def test_the_sbi_form_copies_all_rows_once_to_build_a_network(name):
    inference = NPE(PRIOR, density_estimator=BUILDERS[name](), show_progress_bars=False)
    theta, x = simulations()
    inference.append_simulations(theta, x.repeat(1, 100))
    if name == "with an embedding":
        inference = NPE(
            PRIOR, posterior_nn("maf", embedding_net=nn.Linear(200, 2)), show_progress_bars=False
        ).append_simulations(theta, x.repeat(1, 100))

    class BegunError(Exception):
        """Ends a training that has begun."""

    class Stop(Callback):
        def on_train_start(self, state):
            raise BegunError

    with Copies(TRAIN * 200) as copies, pytest.raises(BegunError):
        inference.train(callbacks=[Stop()])
    assert len(copies.found) == 1, copies.found


def test_rows_with_nan_are_left_out_of_statistics_as_in_plain_tensors():
    rows = torch.randn(500, 3)
    rows[7, 1], rows[9, 2], rows[9, 0] = torch.nan, torch.inf, -torch.inf
    lean = LeanRows.of(rows)
    for function in (handle_invalid_x, z_standardization, standardizing_net):
        found, expected = function(lean), function(rows)
        if isinstance(found, nn.Module):
            found, expected = found.state_dict().values(), expected.state_dict().values()
        for ours, theirs in zip(found, expected, strict=True):
            assert type(ours) is type(theirs)
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_lean_rows_are_plain_to_everything_that_does_not_look_for_nan(monkeypatch):
    monkeypatch.setattr(lean_rows, "_CHUNK", 4)
    rows = torch.randn(6, 2, 3)
    lean = LeanRows.of(rows)
    for result in (lean[:2], lean + 1, torch.cat([lean, lean]), lean.mean(), lean[0], lean * lean):
        assert type(result) is torch.Tensor
    flat = lean.reshape(6, -1)
    assert not torch.isnan(flat).any(dim=1).any()
    assert torch.equal(torch.isinf(flat), torch.zeros(6, 6, dtype=torch.bool))
    assert torch.equal(torch.isnan(flat) | torch.isinf(flat), torch.zeros(6, 6, dtype=torch.bool))
    assert torch.equal(lean[torch.tensor([5, 0])], rows[torch.tensor([5, 0])])
    assert torch.equal(lean[lean[:, 0, 0] > 0], rows[rows[:, 0, 0] > 0])


@pytest.mark.slow
@pytest.mark.parametrize(("way", "bar"), [("sbi form", 1.0), ("typed form", 0.35)])
def test_large_data_need_little_memory_beyond_them(way, bar):
    options = SimpleNamespace(batch_size=4_096, device="cpu", threads=1)
    found = scaling.in_own_process(options, way, 1_000_000, 50, 100)
    assert found["beyond"] <= bar * found["data"]
