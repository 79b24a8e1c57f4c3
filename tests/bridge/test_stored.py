"""Trainers learn from simulations in files what they learn from the same ones in memory."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import sbi.inference
import torch
from sbi.neural_nets import likelihood_nn, posterior_flow_nn, posterior_nn

from sbi_ignite import (
    FMPE,
    NLE,
    NPE,
    SimulationWriter,
    TrainConfig,
    open_simulations,
    patch_sbi,
)
from sbi_ignite.data.on_disk import OnDiskBatches
from sbi_ignite.exceptions import ArgumentError, CheckpointMismatchError, DataError
from tests import forking
from tests.small import METHODS, SBI_WARNS, append, box, draw, empty

pytestmark = SBI_WARNS


def pairs(method="NPE_C", num_rows=200):
    torch.manual_seed(0)
    theta, x = draw(num_rows)
    if method == "MNPE":
        theta = torch.cat([theta[:, :1], (theta[:, 1:] > 0).float()], dim=1)
    if method == "MNLE":
        x = torch.cat([x[:, :1], (x[:, 1:] > 0).float()], dim=1)
    return theta, x


def in_npy(folder, theta, x):
    np.save(folder / "theta.npy", theta.numpy())
    np.save(folder / "x.npy", x.numpy())
    return open_simulations(folder)


def in_h5(path, theta, x, chunk_rows=8):
    with SimulationWriter(path, chunk_rows=chunk_rows) as writer:
        writer.append(theta, x)
    return open_simulations(path)


def config(**kwargs):
    return TrainConfig(**{"max_epochs": 2, "seed": 1, **kwargs})


@pytest.mark.parametrize("method", METHODS)
def test_a_file_with_cheap_rows_gives_the_losses_of_memory(tmp_path, method):
    theta, x = pairs(method)
    results = []
    for stored in (False, True):
        torch.manual_seed(1)
        trainer = empty(method)
        if stored:
            assert trainer.append_simulations_from(in_npy(tmp_path, theta, x)) is trainer
        else:
            append(trainer, theta, x)
        trainer.train(config())
        summary = trainer.training_summary
        results.append((summary.training_loss, summary.validation_loss))
    assert results[0] == pytest.approx(np.array(results[1]), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_by_sbis_keywords_on_a_chunked_file(tmp_path, method):
    trainer = empty(method)
    trainer.append_simulations_from(in_h5(tmp_path / "s.h5", *pairs(method)))
    trainer.train(max_num_epochs=1, training_batch_size=50)
    assert np.isfinite(trainer.training_summary.validation_loss).all()


def test_sbis_own_classes_train_on_files_under_the_patch(tmp_path):
    dataset = in_h5(tmp_path / "s.h5", *pairs())
    with patch_sbi():
        inference = sbi.inference.NPE_C(box(), show_progress_bars=False)
        inference.append_simulations_from(dataset)
        estimator = inference.train(max_num_epochs=1)
        inference.build_posterior(estimator)
    assert not hasattr(sbi.inference.NPE_C, "append_simulations_from")


def moments(rows, z_score):
    """Return mean and standard deviation as sbi defines them, in float64."""
    rows = rows.double()
    if z_score == "structured":
        return rows.mean(), rows.std(dim=1).mean()
    return rows.mean(dim=0), rows.std(dim=0)


def z_scores(method, theta, x):
    """Return what estimators of a method hold, from mean and deviation of theta and of x."""
    embedded, other = (theta, x) if method == "NLE" else (x, theta)
    mean, std = other
    names = {"_embedding_net.0._mean": embedded[0], "_embedding_net.0._std": embedded[1]}
    if method == "NPE":
        names = {f"net.{name}": value for name, value in names.items()}
        transform = "net._transform._transforms.0"
        return {**names, f"{transform}._shift": -mean / std, f"{transform}._scale": 1 / std}
    shift, scale = "_transform_shift", "_transform_scale"
    if method == "FMPE":
        shift, scale = "mean_0", "std_0"
    return {**names, shift: mean, scale: std}


@pytest.mark.parametrize("z_score", ["independent", "structured"])
@pytest.mark.parametrize("method", ["NPE", "NLE", "FMPE"])
def test_z_scoring_is_that_of_all_training_rows(tmp_path, method, z_score):
    """To 1e-6, from one pass, with rare outliers and columns of very different scales."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(3000, 2, generator=generator) * torch.tensor([1.0, 300.0]) + 5
    x = torch.randn(3000, 6, generator=generator) * torch.logspace(-3, 3, 6) + 1
    x[::1000] *= 40
    if method == "FMPE":
        builder = posterior_flow_nn("mlp", z_score_theta=z_score, z_score_x=z_score)
        make = lambda: FMPE(vf_estimator=builder, show_progress_bars=False)  # noqa: E731
    elif method == "NPE":
        builder = posterior_nn("maf", z_score_theta=z_score, z_score_x=z_score)
        make = lambda: NPE(density_estimator=builder, show_progress_bars=False)  # noqa: E731
    else:
        builder = likelihood_nn("mdn", z_score_theta=z_score, z_score_x=z_score)
        make = lambda: NLE(density_estimator=builder, show_progress_bars=False)  # noqa: E731
    buffers = []
    for stored in (False, True):
        torch.manual_seed(1)
        trainer = make()
        if stored:
            trainer.append_simulations_from(in_h5(tmp_path / "s.h5", theta, x))
        else:
            trainer.append_simulations(theta, x)
        estimator = trainer.train(config(max_epochs=1, learning_rate=1e-12))
        parts = (*estimator.named_buffers(), *estimator.named_parameters())
        buffers.append(dict(parts))
    assert buffers[0].keys() == buffers[1].keys()
    for name, value in buffers[0].items():
        torch.testing.assert_close(buffers[1][name], value, rtol=1e-6, atol=1e-6)
    of_training = (moments(rows[trainer.train_indices], z_score) for rows in (theta, x))
    for name, value in z_scores(method, *of_training).items():
        found = buffers[1][name].detach().double()
        assert found.numpy() == pytest.approx(value.expand_as(found).numpy(), rel=1e-6, abs=0), name


def test_trainers_hold_no_rows(tmp_path):
    trainer = empty("NPE_C")
    trainer.append_simulations_from(in_h5(tmp_path / "s.h5", *pairs(num_rows=3000)))
    trainer.train(config(max_epochs=1))
    assert len(pickle.dumps(trainer.get_simulations())) < 5_000
    theta, x, masks = trainer.get_simulations()
    assert (theta.shape, x.shape, masks.shape) == ((3000, 2), (3000, 2), (3000, 1))
    assert torch.equal(x[[7]], pairs(num_rows=3000)[1][[7]])


def test_rounds_in_files_and_in_memory_are_trained_on_together(tmp_path):
    """With an atomic loss, which needs to know what was drawn from the prior."""
    theta, x = pairs()
    losses = []
    for stored in (False, True):
        torch.manual_seed(1)
        trainer = empty("NPE_C")
        if stored:
            trainer.append_simulations_from(in_npy(tmp_path, theta, x))
        else:
            trainer.append_simulations(theta, x)
        trainer.train(config())
        proposal = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
        torch.manual_seed(2)
        new_theta, new_x = draw(100)
        if stored:
            (tmp_path / "new").mkdir()
            dataset = in_npy(tmp_path / "new", new_theta, new_x)
            trainer.append_simulations_from(dataset, proposal=proposal)
            assert trainer.get_simulations()[2][:].sum() == 200
        else:
            trainer.append_simulations(new_theta, new_x, proposal=proposal)
        trainer.append_simulations(*draw(20), proposal=proposal)
        trainer.train(config(max_epochs=1))
        losses.append(trainer.training_summary.validation_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_rows_with_nan_are_left_out_in_the_way_of_the_method(tmp_path, caplog):
    theta, x = pairs(num_rows=300)
    x[5::50, 0], x[7, 1] = float("nan"), float("inf")
    dataset = in_h5(tmp_path / "s.h5", theta, x)
    trainer = empty("NPE_C")
    trainer.append_simulations_from(dataset)
    assert "Found 6 NaN simulations and 1 Inf simulations" in caplog.text
    assert len(trainer.get_simulations()[0]) == 293
    trainer.train(config(max_epochs=1))
    assert sorted([*trainer.train_indices, *trainer.val_indices]) == list(range(293))
    with pytest.raises(DataError, match="Found 6 NaN simulations and 1 Inf"):
        empty("NLE_A").append_simulations_from(dataset)
    likelihood = empty("NLE_A")
    with pytest.warns(UserWarning, match="systematically wrong"):
        likelihood.append_simulations_from(dataset, exclude_invalid_x=True)
    assert len(likelihood.get_simulations()[0]) == 293
    kept = empty("NPE_C").append_simulations_from(dataset, exclude_invalid_x=False)
    assert len(kept.get_simulations()[0]) == 300
    x[:] = float("nan")
    with pytest.raises(DataError, match="all 300 rows"):
        empty("NPE_C").append_simulations_from(in_h5(tmp_path / "n.h5", theta, x))


@pytest.mark.filterwarnings("ignore:The passed prior has no support:UserWarning")
def test_a_trainer_without_a_prior_gets_that_of_the_parameters(tmp_path):
    trainer = empty("NPE_C", prior=None)
    trainer.append_simulations_from(in_h5(tmp_path / "s.h5", *pairs()))
    trainer.train(config(max_epochs=1))
    samples = trainer.build_posterior().sample((5,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert samples.shape == (5, 2)


def test_wrong_arguments_are_refused(tmp_path):
    dataset = in_h5(tmp_path / "s.h5", *pairs())
    with pytest.raises(ArgumentError, match="open_simulations"):
        empty("NPE_C").append_simulations_from(torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="has no from_round"):
        empty("NPE_C").append_simulations_from(dataset, from_round=1)
    with pytest.raises(ArgumentError, match="has no proposal"):
        empty("NLE_A").append_simulations_from(dataset, proposal=box())
    with pytest.raises(ArgumentError, match="transform: expected a function"):
        empty("NPE_C").append_simulations_from(dataset, transform=3)
    with pytest.raises(DataError, match="with 2 rows"):
        empty("NPE_C").append_simulations_from(dataset, transform=lambda theta, x: x)
    trainer = empty("NPE_C").append_simulations_from(dataset, transform=lambda t, x: (t, x))
    with pytest.raises(ArgumentError, match="expected none beside transform"):
        trainer.train(config(dataloader_kwargs={"num_workers": 1}))


def test_dataloader_kwargs_of_users_read_the_file_too(tmp_path):
    trainer = empty("NPE_C").append_simulations_from(in_h5(tmp_path / "s.h5", *pairs()))
    trainer.train(config(max_epochs=1, dataloader_kwargs={"num_workers": 1}))
    assert np.isfinite(trainer.training_summary.validation_loss).all()


def test_validation_rows_are_never_trained_on(tmp_path, monkeypatch):
    seen = {True: set(), False: set()}
    whole = OnDiskBatches.__iter__

    def watched(self):
        for batch in whole(self):
            seen[self.shuffle].update(batch[0][:, 0].tolist())
            yield batch

    monkeypatch.setattr(OnDiskBatches, "__iter__", watched)
    trainer = empty("NPE_C").append_simulations_from(in_h5(tmp_path / "s.h5", *pairs()))
    trainer.train(config(max_epochs=3))
    assert (len(seen[True]), len(seen[False])) == (180, 20)
    assert not seen[True] & seen[False]


PROGRAM = """
import sys, time, torch
from tests.bridge.test_stored import config
from tests import forking
from tests.small import empty

def noisy(theta, x):
    return theta, x + 0.1 * torch.randn_like(x)

def slow(theta, x):
    print("batch", flush=True)
    time.sleep(0.01)
    return noisy(theta, x)

def train(directory, path, transform=noisy):
    torch.manual_seed(1)
    trainer = empty("NPE_C")
    trainer.append_simulations_from(path, transform=transform)
    trainer.train(config(max_epochs=8, batch_size=16), checkpoint=directory)
    return trainer

if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], slow)
"""


@pytest.mark.parametrize("layout", ["h5", "npy"])
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_on_a_file_continues_exactly(tmp_path, layout, with_signal):
    """With fresh noise on every batch, from the middle of an epoch after SIGTERM."""
    theta, x = pairs()
    path = tmp_path / "s.h5" if layout == "h5" else tmp_path
    (in_h5 if layout == "h5" else in_npy)(path, theta, x).close()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = forking.start(str(program), str(tmp_path / "run"), str(path))
    for _ in range(50):
        assert process.stdout.readline()
    process.send_signal(with_signal)
    process.communicate()
    names: dict = {"__name__": "program"}
    exec(PROGRAM, names)
    resumed = names["train"](tmp_path / "run", str(path))
    assert resumed.training_summary.resumed_from_epoch > 0
    whole = names["train"](False, str(path))
    assert resumed.training_summary.training_loss == whole.training_summary.training_loss
    assert resumed.training_summary.validation_loss == whole.training_summary.validation_loss


def test_a_run_is_not_continued_on_a_file_that_has_changed(tmp_path):
    theta, x = pairs()

    def train(**kwargs):
        torch.manual_seed(1)
        trainer = empty("NPE_C")
        dataset = open_simulations(tmp_path / "s.h5", **kwargs)
        trainer.append_simulations_from(dataset)
        trainer.train(config(), checkpoint=tmp_path / "run")
        dataset.close()
        return trainer.training_summary

    in_h5(tmp_path / "s.h5", theta, x).close()
    train()
    with SimulationWriter(tmp_path / "s.h5") as writer:
        writer.append(theta[:8], x[:8])
    with pytest.raises(CheckpointMismatchError):
        train()
    assert train(num_rows=200).resumed_from_epoch == 2
    Path(tmp_path / "s.h5").unlink()
    x[100] += 1
    in_h5(tmp_path / "s.h5", theta, x).close()
    with pytest.raises(CheckpointMismatchError):
        train()
