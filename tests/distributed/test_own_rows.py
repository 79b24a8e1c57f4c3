"""Each process brings rows of its own, and they are trained on as if they were one data set."""

from __future__ import annotations

import pytest
import torch
from sbi.utils import BoxUniform

import sbi_ignite
from sbi_ignite import DataError, TrainConfig, load_run
from tests.distributed import programs
from tests.distributed.ranks import start, together

PARTS = {0: slice(0, 150), 1: slice(150, 190), 2: slice(190, 203)}
"""Of very different sizes; the last one has fewer rows than an epoch of 30 has batches."""


def own_trainer(name="NPE_C", network="mdn", parts=PARTS, shift=0.0):
    theta, x = programs.simulations()
    part = parts[programs.rank()] if programs.size() > 1 else slice(None)
    word = "classifier" if "NRE" in name else "density_estimator"
    trainer = getattr(sbi_ignite, name)(
        BoxUniform(-torch.ones(2), torch.ones(2)), show_progress_bars=False, **{word: network}
    )
    return trainer.append_simulations(theta[part], x[part] + shift)


def joined(checkpoint=None, epochs=3):
    """Train two methods and return what each did."""
    found = {}
    for name, network in (("NPE_C", "mdn"), ("NRE_B", "linear")):
        trainer = own_trainer(name, network)
        torch.manual_seed(1)
        config = TrainConfig(batch_size=30, max_epochs=epochs, shards="own")
        net = trainer.train(config, checkpoint=checkpoint if name == "NPE_C" else None)
        found[name] = {
            **programs.what_it_did(trainer, net),
            "rows": (len(trainer.train_indices), len(trainer.val_indices)),
            "weights": dict(net.state_dict()),
        }
    return found


def test_parts_of_the_rows_are_split_scaled_and_counted_as_one_data_set(tmp_path):
    """Three processes; every row once, in one of them, and z-scores of all rows."""
    (alone,) = together(joined, 1, tmp_path / "alone")
    results = together(joined, 3, tmp_path / "ranks")
    for name in ("NPE_C", "NRE_B"):
        rows = torch.tensor([result[name]["rows"] for result in results]).sum(dim=0)
        assert tuple(rows.tolist()) == alone[name]["rows"]
        first = results[0][name]
        for result in results:
            assert result[name]["world_size"] == 3
            assert result[name]["validation_loss"] == first["validation_loss"]
        # Other batches than those of one process, of the same sizes: close, not equal.
        assert first["validation_loss"][-1] == pytest.approx(
            alone[name]["validation_loss"][-1], abs=0.3
        )
        scales = [n for n in first["weights"] if n.endswith(("_mean", "_std", "_shift", "_scale"))]
        assert scales
        for part in scales:
            torch.testing.assert_close(
                first["weights"][part], alone[name]["weights"][part], rtol=1e-4, atol=1e-4
            )


def test_a_run_on_parts_continues_exactly(tmp_path):
    whole = together(joined, 2, tmp_path / "whole", str(tmp_path / "a"), 4)[0]["NPE_C"]
    together(joined, 2, tmp_path / "begun", str(tmp_path / "b"), 2)
    resumed = together(joined, 2, tmp_path / "resumed", str(tmp_path / "b"), 4)[0]["NPE_C"]
    assert resumed["resumed"] == 2
    for name, weights in whole["weights"].items():
        assert torch.equal(weights, resumed["weights"][name])
    assert len(load_run(tmp_path / "b").manifest["data"]) == 6  # theta, x and masks of two


def test_different_rows_by_accident_are_an_error_that_names_the_processes(tmp_path):
    errors = [rank.end() for rank in start(_unseeded, 3, tmp_path / "shapes")]
    errors += [rank.end() for rank in start(_shifted, 3, tmp_path / "values")]
    for error in errors:
        assert isinstance(error, DataError)
        assert "expected the same rows in all 3 processes" in str(error)
        assert "ranks 0, 1; ranks 2" in str(error)
        assert 'shards="own"' in str(error)


def _unseeded():
    return own_trainer(parts={0: slice(9), 1: slice(9), 2: slice(8)}).train(TrainConfig())


def _shifted():
    everything = dict.fromkeys(PARTS, slice(None))
    return own_trainer(parts=everything, shift=float(programs.rank() == 2)).train(TrainConfig())


def test_each_process_may_train_by_itself(tmp_path):
    for result in together(_alone, 2, tmp_path):
        assert result["world_size"] == 1


def _alone():
    return programs.train("NPE:mdn", shards="alone")
