"""On a CUDA device: sbi's numbers, no waiting in a step, data on the host or on the card."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sbi.inference
import torch
from ignite.engine import Engine, Events
from sbi.utils import BoxUniform

import sbi_ignite.inference
from sbi_ignite import CheckpointConfig, NonFiniteLossError, Stage, TrainConfig, run_training
from sbi_ignite.data.in_memory import OrderedBatches, ShuffledBatches
from sbi_ignite.handlers.epoch_mean import MOST_UNREAD, EpochMean
from sbi_ignite.optim.make import make_optimizer

# Read when CUDA starts: without it, matrix products may round otherwise from stream to stream.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # of torch, about the card it finds
]

DEVICE = torch.device("cuda", 0)
ROWS = 1_000
METHODS = {
    "NPE maf": ("NPE", {"density_estimator": "maf"}),
    "NPE nsf": ("NPE", {"density_estimator": "nsf"}),
    "NPE mdn": ("NPE", {"density_estimator": "mdn"}),
    "NPE zuko_nsf": ("NPE", {"density_estimator": "zuko_nsf"}),
    "NLE maf": ("NLE", {}),
    "NRE": ("NRE", {}),
    "FMPE": ("FMPE", {}),
    "NPSE": ("NPSE", {}),
}


def trainer(inference: Any, method: str = "NPE maf", **append: Any) -> Any:
    """Return a trainer on the card, with its simulations."""
    torch.manual_seed(0)
    name, arguments = METHODS[method]
    prior = BoxUniform(-torch.ones(2, device=DEVICE), torch.ones(2, device=DEVICE))
    made = getattr(inference, name)(prior, device="cuda", show_progress_bars=False, **arguments)
    theta = 2 * torch.rand(ROWS, 2) - 1
    made.append_simulations(theta, theta + 0.1 * torch.randn(ROWS, 2), **append)
    return made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Trace after a few steps, and let sbi write its logs where they are forgotten."""
    monkeypatch.setattr("sbi_ignite.capture.compiler.STEPS_BEFORE_TRACING", 10)
    monkeypatch.chdir(tmp_path)
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def reproducible() -> Iterator[None]:
    """Let torch compute so that two runs of one program on a card agree."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def same(first: Any, second: Any) -> None:
    """Fail unless two trained networks are equal bit for bit."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    different = [name for (name, a), (_, b) in pairs if not torch.equal(a, b)]
    assert different == []


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("method", METHODS)
def test_sbis_form_gives_what_sbi_gives(method: str):
    """Weights, losses and random states, with recordings from the eleventh step on."""
    results = []
    for inference in (sbi.inference, sbi_ignite.inference):
        made = trainer(inference, method)
        net = made.train(training_batch_size=50, max_num_epochs=4)
        states = torch.get_rng_state(), torch.cuda.get_rng_state()
        losses = {name: made.summary[name] for name in ("training_loss", "validation_loss")}
        results.append((net, losses, states))
    (theirs, their_losses, their_states), (ours, our_losses, our_states) = results
    assert our_losses == their_losses
    assert all(map(torch.equal, our_states, their_states))
    same(theirs, ours)


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("method", METHODS)
def test_however_steps_are_computed_the_results_are_the_same(method: str):
    nets = []
    for way in ("off", "auto", "trace", "cuda_graph"):
        made = trainer(sbi_ignite.inference, method)
        config = TrainConfig(batch_size=50, max_epochs=4, compile=way)
        nets.append(made.train(config, checkpoint=False))
    for net in nets[1:]:
        same(nets[0], net)


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("method", ["NPE maf", "NRE", "FMPE"])
def test_a_validation_loss_is_as_uncertain_however_steps_are_computed(method: str):
    """Validation takes several batches here, whose losses a recording writes to one place."""
    stages = [Stage(patience=30, min_improvement=0.1)]
    found = []
    for way in ("off", "auto"):
        made, errors = trainer(sbi_ignite.inference, method), []
        watch = SimpleNamespace(on_epoch_end=lambda s, to=errors: to.append(s.validation_error))
        config = TrainConfig(batch_size=30, max_epochs=30, stages=stages, compile=way)
        with mock.patch("sbi_ignite.bridge.batches._VALIDATION_ROWS", 50):
            made.train(config, checkpoint=False, callbacks=[watch])
        found.append(errors)
    assert found[0] == found[1]
    assert all(0 < error < 10 for error in found[0])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "NPE mdn"])
def test_recordings_run_as_cuda_graphs(method: str):
    # A mixture density network computes with tensors that sbi leaves on the host.
    made = trainer(sbi_ignite.inference, method)
    launch, launches = torch.cuda.CUDAGraph.replay, []

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        launches.append(1)
        launch(graph)

    with mock.patch("torch.cuda.CUDAGraph.replay", counted):
        made.train(TrainConfig(batch_size=50, max_epochs=2), checkpoint=False)
    assert len(launches) > 10


class _NoWaiting:
    """Turns every wait for the card inside a step into an error, from the third epoch on."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(event_filter=self._inside), self._forbid)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._allow)
        self.steps = 0

    def _inside(self, engine: Engine, step: int) -> bool:
        return engine.state.epoch > 2

    def _forbid(self) -> None:
        torch.cuda.set_sync_debug_mode("error")
        self.steps += 1

    def _allow(self) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("method", ["NPE maf", "NPE nsf", "NLE maf", "NPE zuko_nsf", "NRE"])
def test_no_step_waits_for_the_card(method: str, where: str, monkeypatch: pytest.MonkeyPatch):
    if where == "cpu":
        monkeypatch.setattr("sbi_ignite.data.transfer.SHARE_OF_MEMORY", 0.0)
    made = trainer(sbi_ignite.inference, method, data_device=where)
    watch = _NoWaiting()
    config = TrainConfig(batch_size=50, max_epochs=4)
    made.train(config, checkpoint=False, callbacks=[watch])
    assert watch.steps == 36


def test_data_on_the_host_move_to_the_card_where_they_fit():
    made = trainer(sbi_ignite.inference, data_device="cpu")
    seen = []
    run = sbi_ignite.bridge.fit.run_training

    def keep(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[3])
        return run(*args, **kwargs)

    with mock.patch("sbi_ignite.bridge.fit.run_training", keep):
        made.train(TrainConfig(max_epochs=1), checkpoint=False)
    assert all(tensor.device == DEVICE for tensor in seen[0].tensors)


@pytest.mark.parametrize("compat", [True, False])
def test_data_that_do_not_fit_give_the_same_network(compat: bool, monkeypatch: pytest.MonkeyPatch):
    nets = []
    for share in (0.5, 0.0):
        monkeypatch.setattr("sbi_ignite.data.transfer.SHARE_OF_MEMORY", share)
        made = trainer(sbi_ignite.inference, data_device="cpu")
        config = TrainConfig(batch_size=50, max_epochs=3, sbi_compat=compat)
        nets.append(made.train(config, checkpoint=False))
    same(*nets)


def test_batches_from_the_host_are_the_rows_they_name():
    """With more batches than slots in pinned memory, and the card kept busy meanwhile."""
    rows = torch.arange(40_000.0)[:, None].repeat(1, 100)
    batches = ShuffledBatches((rows, rows[:, 0]), torch.arange(40_000), 512, 0)
    batches.to(DEVICE)
    busy = torch.randn(4_096, 4_096, device=DEVICE)
    seen, numbers = [], []
    for wide, narrow in batches:
        busy = (busy @ busy).tanh()
        assert wide.device == narrow.device == DEVICE
        seen.append((wide[:, 0].clone(), wide[:, 99].clone(), narrow.clone()))
        numbers.append(batches.rows)
    for shown, expected in zip(seen, numbers, strict=True):
        for values in shown:
            assert torch.equal(values.cpu().long(), expected)


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_loss_that_is_not_finite_is_told_apart_later(share: float, monkeypatch: Any):
    """Losses are read a hundred at a time; the error still names step and row."""
    monkeypatch.setattr("sbi_ignite.data.transfer.SHARE_OF_MEMORY", share)
    made = trainer(sbi_ignite.inference, data_device="cpu")
    made.train(TrainConfig(batch_size=10, max_epochs=2), checkpoint=False)
    before = copy.deepcopy(made._neural_net.state_dict())
    row = int(made.train_indices[17])
    made._x_roundwise[0][row, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="row numbers") as caught:
        made.train(TrainConfig(batch_size=10, max_epochs=4, resume_training=True), checkpoint=False)
    assert (caught.value.epoch, caught.value.rows) == (3, (row,))
    after = made._neural_net.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert before.keys() == after.keys()


@pytest.mark.parametrize("compat", [True, False])
def test_a_validation_loss_that_is_not_finite_is_told_apart_when_it_is_read(compat: bool):
    """In the epoch that it belongs to, with its row."""
    x = torch.randn(60, 2, device=DEVICE)
    batches = [(x[:8],), (x[8:16],)]
    others = OrderedBatches((x,), torch.arange(20, 40), 10)
    x[33, 0] = torch.nan
    model = torch.nn.Linear(2, 1).to(DEVICE)
    with pytest.raises(NonFiniteLossError, match=r"validation loss.*epoch 1") as caught:
        run_training(
            TrainConfig(max_epochs=3, sbi_compat=compat),
            model,
            lambda m, b: m(b[0])[:, 0].square(),
            batches,
            others,
        )
    assert (caught.value.validation, caught.value.rows) == (True, (33,))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_losses_are_read_together():
    reads = []
    read = EpochMean.read

    def counted(mean: EpochMean) -> None:
        reads.extend([len(mean._unread)] if mean._unread else [])
        read(mean)

    model = torch.nn.Linear(2, 1).to(DEVICE)
    batches = [torch.randn(8, 2, device=DEVICE) for _ in range(MOST_UNREAD + 5)]
    with mock.patch.object(EpochMean, "read", counted):
        run_training(
            TrainConfig(max_epochs=2, compile="off"),
            model,
            lambda m, b: m(b)[:, 0].square(),
            batches,
        )
    assert reads == [MOST_UNREAD, 5] * 2


@pytest.mark.parametrize("compat", [True, False])
def test_a_training_that_was_cut_goes_on_as_if_nothing_had_happened(compat: bool, tmp_path: Path):
    class CutError(Exception):
        pass

    class Cutting:
        def on_epoch_end(self, state: Any) -> None:
            if state.epoch == 3:
                raise CutError

    config = TrainConfig(batch_size=50, max_epochs=6, sbi_compat=compat)
    whole = trainer(sbi_ignite.inference).train(config, checkpoint=False)
    files = CheckpointConfig(directory=tmp_path / "run", every_epochs=1)
    with pytest.raises(CutError):
        trainer(sbi_ignite.inference).train(config, checkpoint=files, callbacks=[Cutting()])
    torch.cuda.manual_seed(99)
    again = trainer(sbi_ignite.inference)
    continued = again.train(config, checkpoint=files)
    assert again.training_summary.resumed_from_epoch > 0
    same(whole, continued)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("compat", [True, False])
def test_a_flat_step_is_torchs(kind: str, compat: bool):
    """Bit for bit in sbi's form; fused kernels round the ends of tensors in their own way."""
    from sbi_ignite.optim.flat import FlatOptimizer

    ends = []
    for flat in (False, True):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3))
        net.to(DEVICE)
        config = TrainConfig(optimizer=kind, weight_decay=0.1, sbi_compat=compat)
        optimizer = make_optimizer(config, net.parameters())
        stepping = FlatOptimizer(optimizer)
        if not flat:
            stepping = optimizer  # type: ignore[assignment] # torch's own
        for step in range(6):
            stepping.zero_grad()
            net(torch.randn(5, 7, device=DEVICE)).square().mean().backward()
            if flat and step == 0:
                lent = stepping.lent_memory()
                lent.__enter__()
            stepping.step()
        if flat:
            assert stepping._memory is not None
            lent.__exit__(None, None, None)
        ends.append([p.detach().clone() for p in net.parameters()])
    for torchs, ours in zip(*ends, strict=True):
        # Parts near zero have no scale of their own: what is rounded are updates of 5e-4.
        rtol, atol = (0.0, 0.0) if compat else (1e-6, 1e-9)
        torch.testing.assert_close(ours, torchs, rtol=rtol, atol=atol)


def test_bf16_trains():
    made = trainer(sbi_ignite.inference)
    made.train(TrainConfig(batch_size=50, max_epochs=8, precision="bf16-mixed"), checkpoint=False)
    losses = made.training_summary.validation_loss
    assert losses[-1] < losses[0]
