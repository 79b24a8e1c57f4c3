"""Fingerprints tell data and networks apart, and differences are said in sentences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.runs.fingerprint import differences, fingerprint_network
from sbi_ignite.runs.manifest import make_manifest
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, TrainConfig, resolve


def manifest(config=None, *, data=None, network=None, method="NPE_C", **kwargs):
    """Return the manifest of a small training."""
    data = [torch.arange(12.0).reshape(4, 3)] if data is None else data
    settings = resolve(train=config or TrainConfig(), **kwargs)
    return make_manifest(
        method=method,
        settings=settings.to_dict(),
        seed=settings.train.seed,
        data=fingerprint_data(data),
        network=network or nn.Linear(3, 2),
    )


def test_a_network_is_known_by_its_structure_not_its_values():
    """Other values are the same network; other sizes, layers or names are not."""
    first = fingerprint_network(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    assert first == fingerprint_network(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    others = [
        nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 2).double(), nn.ReLU()),
        nn.ModuleList([nn.Linear(3, 2), nn.ReLU()]),
    ]
    for other in others:
        assert fingerprint_network(other)["digest"] != first["digest"]


@pytest.mark.parametrize(
    "changed",
    [
        {"config": TrainConfig(max_epochs=500, max_time=60)},
        {"config": TrainConfig(show_train_summary=True)},
        {"early_stopping": EarlyStopping.validation_loss(patience=100)},
        {"early_stopping": EarlyStopping.never()},
        {"logging": "stdout"},
        {"checkpoint": CheckpointConfig("elsewhere", every_epochs=7, resume="must")},
    ],
)
def test_budgets_may_change(changed):
    """More epochs, time or patience, and other logs, are the same run."""
    assert differences(manifest(), manifest(**changed)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 17),
        ("learning_rate", 1e-3),
        ("optimizer", "sgd"),
        ("weight_decay", 0.1),
        ("clip_max_norm", None),
        ("validation_fraction", 0.2),
        ("lr_schedule", "cosine"),
        ("ema_decay", 0.9),
        ("precision", "bf16-mixed"),
        ("sbi_compat", True),
    ],
)
def test_settings_that_change_numbers_may_not_change(name, value):
    """The sentence names the setting, both values, where the new one comes from, and a way out."""
    (sentence,) = differences(manifest(), manifest(TrainConfig(**{name: value})))
    assert f"The setting {name} differs" in sentence
    assert repr(value) in sentence or str(value) in sentence
    assert f"TrainConfig({name}=" in sentence
    assert 'resume="never"' in sentence


def test_other_data_are_named_with_advice():
    """Same shapes with other values get the advice to seed; other shapes are listed."""
    before = manifest()
    (sentence,) = differences(before, manifest(data=[torch.ones(4, 3)]))
    assert "same shapes, other values in tensor 0" in sentence
    assert "torch.manual_seed" in sentence
    assert 'resume="never"' in sentence
    (sentence,) = differences(before, manifest(data=[torch.ones(5, 3)]))
    assert "the run has (4, 3) float32, now it is (5, 3) float32" in sentence


def test_other_methods_networks_and_seeds_are_named():
    """Every difference has a sentence of its own."""
    now = manifest(TrainConfig(seed=4), network=nn.Linear(3, 5), method="NLE_A")
    sentences = differences(manifest(TrainConfig(seed=3)), now)
    text = "\n".join(sentences)
    assert len(sentences) == 3
    assert "The method differs: the run has NPE_C, now it is NLE_A" in text
    assert "The seed differs: the run has 3, now it is 4" in text
    assert "torch.nn.modules.linear.Linear with 8 parameters" in text


def test_networks_of_one_size_and_other_structure_differ():
    """The sentence says so where class and number of parameters are the same."""
    first, second = (nn.Sequential(nn.Linear(3, 3), layer) for layer in (nn.ReLU(), nn.Tanh()))
    (sentence,) = differences(manifest(network=first), manifest(network=second))
    assert "another structure of the same size" in sentence


def test_the_manifest_survives_json():
    """A manifest that was written and read again differs in nothing."""
    import json

    now = manifest(TrainConfig(seed=1, lr_schedule="cosine"))
    assert differences(json.loads(json.dumps(now)), now) == []
    assert {"python", "torch", "sbi", "pytorch-ignite", "sbi-ignite"} <= now["versions"].keys()
