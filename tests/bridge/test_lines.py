"""A run written by one line of sbi is loaded by the others, or they say why not."""

from __future__ import annotations

import json

import pytest
import torch

from sbi_ignite import load_estimator
from sbi_ignite.bridge.lines import line_name, sbi_0_26, sbi_0_27, sbi_main
from sbi_ignite.bridge.networks import rebuild_network
from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from tests.bridge.write_runs import RUNS, values
from tests.small import ready

LINES = ("0.26", "0.27", "main")


def builds_otherwise(kind: str, line: str) -> bool:
    """Return whether the installed sbi has other vector fields than a line: 0.27 added buffers."""
    return kind.startswith(("fmpe", "npse")) and "0.26" in {line, line_name()} != {"0.26"}


@pytest.mark.parametrize("line", LINES)
def test_a_run_of_every_line_loads_with_equal_values(line):
    """With every kind of network, made by factories or by configurations."""
    expected = json.loads((RUNS / line / "expected.json").read_text())
    assert len(expected) >= 10
    loaded = 0
    for kind, numbers in expected.items():
        if builds_otherwise(kind, line):
            with pytest.raises(CheckpointMismatchError, match=f"by sbi {line}, .* in run.json"):
                load_estimator(RUNS / line / kind)
            continue
        found = values(load_estimator(RUNS / line / kind), kind)
        assert found == pytest.approx(numbers, abs=2e-5), kind
        loaded += 1
    assert loaded >= 7


def described(**builder):
    """Return the description of a network of two parameters and two numbers observed."""
    batch = {"shape": [2], "dtype": "float32", "discrete": {}}
    call = {"function": "build_mdn", "batches": ["theta", "x"], "keywords": {}, "defaults": {}}
    return {"inputs": [batch, batch], "line": "other", "builder": {**call, **builder}}


@pytest.mark.parametrize(
    ("builder", "why"),
    [
        ({"function": "build_what_comes_next"}, "it has no function build_what_comes_next"),
        ({"function": "__import__"}, "it has no function __import__"),
        ({"function": "check_net_device"}, "it has no function check_net_device"),
        (
            {"function": "build_linear_classifier", "keywords": {"x_dist": "a prior"}},
            "its build_linear_classifier does not take x_dist",
        ),
        ({"keywords": {"hidden_features": "many"}}, "hidden_features|str"),
        ({"batches": ["theta", "y"]}, "'y'"),
    ],
)
def test_what_the_installed_sbi_cannot_build_is_said_in_one_sentence(builder, why):
    with pytest.raises(CheckpointError, match=rf"network of a run by sbi other: .*({why})"):
        rebuild_network(described(**builder))


def test_keywords_that_change_nothing_are_left_out_where_sbi_lacks_them():
    keywords = {"net": "mlp", "hidden_features": 6, "num_layers": 1}
    with_it = {**keywords, "compose_standardization": False}
    plain, with_idle = (
        rebuild_network(described(function="build_vector_field_estimator", keywords=given))
        for given in (keywords, with_it)
    )
    assert plain.state_dict().keys() == with_idle.state_dict().keys()


def test_defaults_are_those_of_the_sbi_that_trained_the_run():
    """Where the installed one has other defaults for what the run left out."""
    kept = rebuild_network(described(defaults={"hidden_features": 7, "unknown": 3}))
    given = rebuild_network(
        described(defaults={"hidden_features": 7}, keywords={"hidden_features": 9})
    )
    widths = [next(net.net.parameters()).shape[0] for net in (kept, given)]
    assert widths == [7, 9]


@pytest.mark.parametrize(
    ("builder", "function"),
    [
        (
            {
                "factory": "posterior_nn",
                "inner": "build_fn",
                "closure": {
                    "model": "maf",
                    "builder_kwargs": {"mapping": {"hidden_features": 5, "num_transforms": 1}},
                },
            },
            "NFlowsFlow",
        ),
        (
            {
                "partial": {
                    "factory": "posterior_nn",
                    "inner": "build_fn_snpe_a",
                    "closure": {"builder_kwargs": {"mapping": {"hidden_features": 5}}},
                },
                "args": [],
                "keywords": {"num_components": 2},
            },
            "MixtureDensityEstimator",
        ),
        (
            {
                "factory": "classifier_nn",
                "inner": "build_fn",
                "closure": {"model": "mlp", "builder_kwargs": {"mapping": {"hidden_features": 5}}},
            },
            "RatioEstimator",
        ),
        (
            {
                "factory": "posterior_score_nn",
                "inner": "build_fn",
                "closure": {"sde_type": "vp", "builder_kwargs": {"mapping": {"num_layers": 1}}},
            },
            "VPScoreEstimator",
        ),
    ],
)
def test_descriptions_of_earlier_releases_are_still_understood(builder, function):
    description = {**described(), "builder": builder}
    del description["line"]
    assert type(rebuild_network(description)).__name__ == function


def frozen():
    """Return a trainer with a network of which all parameters are frozen."""
    trainer = ready("NPE_C")
    trainer._neural_net = torch.nn.Linear(2, 2).requires_grad_(False)
    return trainer


def test_sbi_main_optimizes_what_is_not_frozen_and_refuses_to_train_nothing():
    trainer = frozen()
    with pytest.raises(TypeError, match="NPE_C cannot train Linear: it has no trainable param"):
        sbi_main.Trainer(trainer).trained_parameters()
    trainer._neural_net.bias.requires_grad_()
    assert sbi_main.Trainer(trainer).trained_parameters() == [trainer._neural_net.bias]
    assert len(sbi_0_27.Trainer(trainer).trained_parameters()) == 2


def test_sbi_0_26_leaves_the_last_validation_loss_when_it_starts_anew():
    trainer = ready("NPE_C")
    trainer._val_loss = 3.0
    sbi_0_26.Trainer(trainer).reset()
    assert (trainer.epoch, trainer._val_loss, trainer.val_loss) == (0, 3.0, float("inf"))
    sbi_0_27.Trainer(trainer).reset()
    assert trainer._val_loss == float("inf")


def test_sbi_0_26_asks_once_more_for_convergence_when_it_reports(monkeypatch):
    trainer, asked = ready("NPE_C"), []
    trainer.epoch = 7
    monkeypatch.setattr(
        trainer, "_report_convergence_at_end", lambda *args: asked.append(args), raising=False
    )
    sbi_0_26.Trainer(trainer).report_convergence(20, 6)
    sbi_0_27.Trainer(trainer).report_convergence(20, 6)
    assert asked == [(7, 20, 6), (7, 6)]
