"""What a callback may train while a trainer trains."""

from __future__ import annotations

import pytest
import torch

from sbi_ignite import NPE, ArgumentError, Callback, MarginalTrainer, TrainConfig


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("as_sbi", [True, False], ids=["sbi's form", "typed form"])
@pytest.mark.parametrize("trainer", [NPE, MarginalTrainer])
def test_a_trainer_cannot_be_trained_from_inside_its_own_training(trainer, as_sbi):
    """Nor can sbi's loop be entered instead; another trainer can be trained there."""
    torch.manual_seed(0)
    theta = torch.rand(60, 2)

    def new():
        if trainer is MarginalTrainer:
            return MarginalTrainer(show_progress_bars=False).append_samples(theta)
        return NPE(show_progress_bars=False).append_simulations(theta, theta + 0.1)

    def train(inference, **keywords):
        if as_sbi:
            return inference.train(max_num_epochs=1, **keywords)
        return inference.train(TrainConfig(max_epochs=1), **keywords)

    inference, others = new(), []

    class Nested(Callback):
        def on_epoch_end(self, state):
            if not others:
                others.append(train(new()))
                train(inference)

    with pytest.raises(ArgumentError, match=r"train\(\): expected a trainer that is not training"):
        train(inference, callbacks=Nested())
    assert len(others) == 1
    assert train(new()) is not None
