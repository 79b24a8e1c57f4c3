"""run_training(), ignite.distributed.Parallel and every method train with several processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import DataError, TrainConfig, run_training
from sbi_ignite.world import local_card
from tests.distributed import programs
from tests.distributed.ranks import start, together


def squared_error(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(dim=1)


def regression(rows=slice(None), batch=10, **config):
    """Train on a DataLoader that shuffles, from a model that differs between processes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(101, 3, generator=generator)[rows]  # the last batch has a single row
    loader = DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch, shuffle=True)
    torch.manual_seed(programs.rank())
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    model = model if config.pop("normalized", False) else nn.Sequential(model[0], *model[2:])
    model, summary = run_training(
        TrainConfig(max_epochs=3, **config), model, squared_error, loader, loader
    )
    return dict(model.state_dict()), summary.training_loss, summary.world_size


def _regressions():
    return regression(), regression(slice(100), normalized=True, batch=20)


def test_run_training_shares_every_batch_of_a_loader(tmp_path):
    """Every row once, also of a batch with fewer rows than processes; rank 0's weights begin."""
    (alone,) = together(_regressions, 1, tmp_path / "alone")
    ranks = together(_regressions, 2, tmp_path / "ranks")
    for plain, normalized in ranks:
        assert plain[2] == 2
        assert plain[1] == pytest.approx(alone[0][1], rel=1e-5)
        for name, weights in alone[0][0].items():
            torch.testing.assert_close(plain[0][name], weights, rtol=1e-4, atol=1e-5)
        for name, weights in ranks[0][1][0].items():  # also BatchNorm's statistics
            assert torch.equal(weights, normalized[0][name])


def _own_loaders():
    found = regression(slice(programs.rank(), 100, 2), batch=5, shards="own")
    with pytest.raises(DataError, match=r"same number of batches.*10 in rank 0, 5 in rank 1"):
        regression(slice(programs.rank(), 100, 2), 5 + 5 * programs.rank(), shards="own")
    return found


def test_run_training_takes_loaders_that_each_have_a_part_of_every_batch(tmp_path):
    first, second = together(_own_loaders, 2, tmp_path)
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def _in_parallel(folder):
    import ignite.distributed as idist

    def training(local_rank):
        found.update(programs.train("NPE:mdn"))

    found = {}
    with idist.Parallel(backend="gloo") as parallel:
        parallel.run(training)
    return found


def test_the_group_of_idist_parallel_is_used(tmp_path):
    for result in together(_in_parallel, 2, tmp_path, str(tmp_path)):
        assert result["world_size"] == 2


def _own_epoch():
    import sbi_ignite

    class Own(sbi_ignite.NPE_C):
        def _train_epoch(self, *args, **kwargs):
            raise AssertionError("not reached")

    theta, x = programs.simulations()
    trainer = Own(programs.prior(), show_progress_bars=False).append_simulations(theta, x)
    return trainer.train(max_num_epochs=1)


def test_a_trainer_that_steps_by_itself_is_refused(tmp_path):
    for rank in start(_own_epoch, 2, tmp_path):
        assert "expected a trainer with sbi's own _train_epoch" in str(rank.end())


# --- every method

METHODS = (
    *("NPE_A:mdn_snpe_a", "NPE_B:maf", "NPE_C:nsf", "MNPE", "NLE_A:maf", "MNLE"),
    *("NRE_A", "NRE_B", "NRE_C", "BNRE", "FMPE", "NPSE", "MarginalTrainer"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_method_ends_within_noise_of_one_process(tmp_path):
    """Typed form and sbi's keywords: what is left is a small part of what training has gained."""
    calls = {name: {"max_epochs": 12, "learning_rate": 2e-3} for name in METHODS}
    calls |= {
        f"{name} sbi": {
            "sbi_form": True,
            "max_num_epochs": 11,
            "training_batch_size": 45,
            "learning_rate": 2e-3,
        }
        for name in ("NPE_C:mdn", "NLE_A:maf", "NRE_A", "NRE_B", "NRE_C", "BNRE", "FMPE", "NPSE")
    }
    (alone,) = together(programs.train_each, 1, tmp_path / "alone", calls)
    for found in together(programs.train_each, 2, tmp_path / "ranks", calls):
        for name, result in found.items():
            first, last = alone[name]["validation_loss"][0], alone[name]["validation_loss"][-1]
            allowed = 0.3 * abs(first - last) + 0.05
            assert result["world_size"] == 2
            assert abs(result["validation_loss"][-1] - last) < allowed, name


def test_a_single_process_that_a_launcher_started_gives_the_numbers_of_one_that_none_did(tmp_path):
    known = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    (alone,) = together(programs.train, 1, tmp_path / "alone", "FMPE")
    (launched,) = together(programs.train, 1, tmp_path / "launched", "FMPE", **known)
    assert launched["world_size"] == 1
    assert launched["training_loss"] == alone["training_loss"]
    assert launched["validation_loss"] == alone["validation_loss"]
    assert torch.equal(launched["next_random"], alone["next_random"])


@pytest.mark.parametrize(("known", "threads"), [({"SLURM_CPUS_PER_TASK": "3"}, 3), ({}, None)])
def test_threads_are_shared_out_among_the_processes_of_a_machine(tmp_path, known, threads):
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert together(_threads, 2, tmp_path, **known) == [threads, threads]
    said = (tmp_path / "output-0").read_text()
    assert f"each has {threads} thread" in said
    assert ("SLURM_CPUS_PER_TASK" if known else "processors / processes") in said


def _threads():
    del os.environ["OMP_NUM_THREADS"]
    programs.train("NPE:mdn")
    return torch.get_num_threads()


class Draws:
    """Looks at the noise that comes next, and leaves it there."""

    def __init__(self):
        self.drawn = []

    def on_epoch_end(self, state):
        with torch.random.fork_rng():
            self.drawn.append(torch.rand(3))


def test_noise_is_another_one_in_every_process_and_the_same_in_every_run(tmp_path):
    first, second = (together(_drawn, 2, tmp_path / name) for name in ("first", "second"))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])


def _drawn():
    draws = Draws()
    programs.train("FMPE", callbacks=[draws])
    return draws.drawn[0]


@pytest.mark.parametrize("launched", [True, False])
def test_cuda_is_the_card_of_the_local_rank(monkeypatch, launched):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    known = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "3"}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in known.items() if launched else ():
        monkeypatch.setenv(name, value)
    assert str(local_card("cuda")) == ("cuda:1" if launched else "cuda")
    assert str(local_card("cuda:0")) == "cuda:0"
    assert str(local_card("cpu")) == "cpu"
