"""A pretrained embedding that the user has frozen and put into evaluation mode."""

from __future__ import annotations

import copy

import sbi.inference
import torch
from sbi.neural_nets import posterior_nn
from torch import nn

from sbi_ignite import TrainConfig
from tests.small import SBI_WARNS, Silent, append, box, draw, empty, same, second_round, train

pytestmark = SBI_WARNS


def pretrained():
    """Return an embedding whose statistics come from other data."""
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.ReLU())
    embedding(3 * torch.randn(64, 2) + 1)
    return embedding.requires_grad_(False).eval()


def trainer_with(embedding, kind=None):
    torch.manual_seed(1)
    build = posterior_nn("maf", hidden_features=8, num_transforms=2, embedding_net=embedding)
    if kind is None:
        trainer = empty("NPE_C", density_estimator=build)
    else:
        trainer = kind(box(), density_estimator=build, tracker=Silent(), show_progress_bars=False)
    return append(trainer, *draw())


def its_state(trainer):
    """Return the embedding's own state inside the trained network."""
    (norm,) = (part for part in trainer._neural_net.modules() if isinstance(part, nn.BatchNorm1d))
    return copy.deepcopy(norm.state_dict())


def unchanged(trainer, embedding):
    before = embedding[1].state_dict()
    return all(torch.equal(value, before[name]) for name, value in its_state(trainer).items())


FIELDS = {"batch_size": 27, "learning_rate": 0.01}


def test_the_typed_form_leaves_its_statistics_alone_in_every_call():
    """Also in a second call that resumes, in a second round, and in one from scratch."""
    embedding = pretrained()
    trainer = trainer_with(copy.deepcopy(embedding))
    for epochs, more in ((2, {}), (4, {"resume_training": True})):
        train(trainer, TrainConfig(**FIELDS, **more, max_epochs=epochs))
        assert unchanged(trainer, embedding), more
    for more in ({}, {"retrain_from_scratch": True}):
        train(second_round(trainer), TrainConfig(**FIELDS, **more, max_epochs=2))
        assert unchanged(trainer, embedding), more


def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path):
    def run(directory, epochs):
        config = TrainConfig(**FIELDS, max_epochs=epochs)
        return train(trainer_with(pretrained()), config, checkpoint=str(tmp_path / directory))

    whole = run("whole", 4)
    run("cut", 2)
    cut = run("cut", 4)
    assert cut.training_summary.resumed_from_epoch == 2
    assert same(cut, whole)
    assert unchanged(cut, pretrained())


def test_sbis_form_does_as_sbi_does():
    """All parts are put into training mode, and the statistics move."""
    ours, sbis = trainer_with(pretrained()), trainer_with(pretrained(), sbi.inference.NPE)
    for trainer in (ours, sbis):
        train(trainer, training_batch_size=27, max_num_epochs=2)
    assert same(ours, sbis)
    assert not unchanged(ours, pretrained())


def test_a_trainable_embedding_is_trained_as_ever():
    embedding = pretrained().requires_grad_(True)
    trainer = trainer_with(copy.deepcopy(embedding))
    train(trainer, TrainConfig(**FIELDS, max_epochs=2))
    assert not unchanged(trainer, embedding)
