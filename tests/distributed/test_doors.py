"""run_training(), ignite.distributed.Parallel and every method train with several processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import DataError, TrainConfig, run_training
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
