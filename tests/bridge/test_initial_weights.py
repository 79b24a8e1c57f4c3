"""Training begins with the weights of an earlier one: `train(init_from=...)`."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from sbi.neural_nets import posterior_nn

import sbi_ignite
from sbi_ignite import (
    ArgumentError,
    CheckpointError,
    CheckpointMismatchError,
    TrainConfig,
    load_run,
)
from tests.small import (
    METHODS,
    SBI_WARNS,
    append,
    draw,
    empty,
    flow,
    ready,
    same,
    second_round,
    train,
    weights,
)

pytestmark = SBI_WARNS
FEW: dict[str, Any] = {"max_epochs": 2}


def grown(name: str = "NPE_C") -> Any:
    """Return a trainer with other and more simulations, on another scale."""
    torch.manual_seed(5)
    theta, x = draw(200)
    return append(empty(name), theta, 2 * x + 1)


class First:
    """A callback that keeps the weights with which training starts."""

    def on_train_start(self, state: Any) -> None:
        self.weights, self.model = weights(state.model), deepcopy(state.model)


def first_weights(trainer: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    first = First()
    train(trainer, *args, callbacks=first, **kwargs)
    return first.weights


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_training_begins_with_the_weights_and_z_scores_of_an_estimator(name: str, typed: bool):
    """In both forms; the buffers that hold z-scores are in the state dict."""
    source = train(ready(name), TrainConfig(**FEW))
    config = [TrainConfig(**FEW)] if typed else []
    kwargs = {} if typed else {"max_num_epochs": 1}
    trainer = grown(name)
    assert same(first_weights(trainer, *config, **kwargs, init_from=source._neural_net), source)
    assert trainer.training_summary.init_from["source"].startswith("estimator ")


@pytest.mark.parametrize("name", METHODS)
def test_the_network_that_training_begins_with_computes_what_its_source_does(name: str):
    """Nothing that a network computes with is outside of its state dict."""
    source = train(ready(name), TrainConfig(**FEW))
    first = First()
    train(
        grown(name), TrainConfig(**FEW), init_from=source._neural_net.state_dict(), callbacks=first
    )
    assert torch.equal(losses(first.model, source), losses(source._neural_net, source))


def losses(net: Any, trainer: Any) -> torch.Tensor:
    """Return what a network computes of a few rows of a trainer."""
    net.eval()
    if type(trainer).__name__ == "MarginalTrainer":
        return net.log_prob(trainer.get_samples()[:5])
    theta, x, _ = trainer.get_simulations()
    torch.manual_seed(0)
    with torch.no_grad():
        if "NRE" in type(trainer).__name__:
            return net(theta[:5], x[:5])
        pair = (x, theta) if "NLE" in type(trainer).__name__ else (theta, x)
        return net.loss(*(t[:5] for t in pair))


@pytest.mark.parametrize("door", ["ours", "patched"])
def test_a_run_directory_serves_as_source_behind_both_doors(door: str, tmp_path: Path):
    train(ready(), TrainConfig(**FEW), checkpoint=str(tmp_path / "exp1"))
    best = train(ready(), TrainConfig(**FEW))
    if door == "ours":
        trainer = grown()
        first = first_weights(trainer, TrainConfig(**FEW), init_from=tmp_path / "exp1")
    else:
        import sbi.inference

        sbi_ignite.patch_sbi()
        try:
            torch.manual_seed(5)
            theta, x = draw(200)
            trainer = append(empty("NPE_C", sbi.inference), theta, 2 * x + 1)
            first = first_weights(trainer, max_num_epochs=1, init_from=str(tmp_path / "exp1"))
        finally:
            sbi_ignite.unpatch_sbi()
    assert same(first, best)
    origin = trainer.training_summary.init_from
    assert origin["source"] == str(tmp_path / "exp1")
    assert origin["run"] == load_run(tmp_path / "exp1").manifest["run"]
    assert origin["epoch"] == best.training_summary.best_epoch
    assert "began with" in str(trainer.training_summary)


def test_of_several_rounds_the_last_with_weights_is_taken(tmp_path: Path):
    trainer = train(ready(), TrainConfig(**FEW), checkpoint=str(tmp_path))
    last = train(second_round(trainer), TrainConfig(**FEW), checkpoint=str(tmp_path))
    other = grown()
    assert same(first_weights(other, TrainConfig(**FEW), init_from=str(tmp_path)), last)
    assert other.training_summary.init_from["source"] == str(tmp_path / "round-1")


def test_manifest_and_summary_name_the_same_weights(tmp_path: Path):
    source = train(ready(), TrainConfig(**FEW))
    net = source._neural_net
    for init_from in (net, net.state_dict()):
        folder = tmp_path / type(init_from).__name__
        trainer = train(grown(), TrainConfig(**FEW), init_from=init_from, checkpoint=str(folder))
        run = load_run(folder)
        assert run.summary is not None
        assert run.manifest["init_from"] == trainer.training_summary.init_from
        assert run.summary.init_from == trainer.training_summary.init_from
    other = train(ready(), TrainConfig(max_epochs=1))
    again = train(grown(), TrainConfig(**FEW), init_from=other._neural_net)
    digests = {run.manifest["init_from"]["weights"] for run in map(load_run, tmp_path.iterdir())}
    assert len(digests) == 1
    assert again.training_summary.init_from["weights"] not in digests


def test_without_it_nothing_is_recorded():
    assert train(ready(), TrainConfig(**FEW)).training_summary.init_from is None


def test_another_architecture_is_refused_with_names_and_shapes():
    wide = train(ready(density_estimator=flow(12)), TrainConfig(**FEW))
    trainer = grown()
    with pytest.raises(ArgumentError, match=r"init_from") as caught:
        train(trainer, TrainConfig(**FEW), init_from=wide._neural_net)
    text = str(caught.value)
    assert "estimator NFlowsFlow" in text
    assert "expected (8, 2), got (12, 2)" in text
    assert "more" in text
    assert text.count("expected (") == 5
    train(trainer, TrainConfig(**FEW))  # nothing is left of the refused call


def test_missing_and_unknown_tensors_are_named():
    state = train(ready(), TrainConfig(**FEW))._neural_net.state_dict()
    name = next(iter(state))
    renamed = {**state, "extra": state[name]}
    del renamed[name]
    with pytest.raises(ArgumentError, match=r"got nothing.*extra: expected nothing"):
        train(grown(), TrainConfig(**FEW), init_from=renamed)


@pytest.mark.parametrize("given", [3, [torch.zeros(2)], {1: torch.zeros(2)}])
def test_other_types_are_refused(given: Any):
    with pytest.raises(ArgumentError, match="init_from: expected the run directory"):
        train(grown(), TrainConfig(**FEW), init_from=given)


def test_a_directory_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"init_from: .*no weights"):
        train(grown(), TrainConfig(**FEW), init_from=str(tmp_path / "nothing"))


def test_a_training_resumed_in_the_process_does_not_load_again():
    source = train(ready(), TrainConfig(**FEW))._neural_net
    once = train(grown(), TrainConfig(max_epochs=4), init_from=source)
    trainer = train(grown(), TrainConfig(max_epochs=2), init_from=source)
    trainer.train(TrainConfig(max_epochs=4, resume_training=True), init_from=source)
    assert same(trainer, once)
    assert trainer.training_summary.init_from is not None


def test_a_run_resumed_from_its_directory_does_not_need_its_source(tmp_path: Path):
    """Nor does the source leave a trace in what follows."""
    source = train(ready(), TrainConfig(**FEW), checkpoint=str(tmp_path / "exp1"))._neural_net
    once = train(grown(), TrainConfig(max_epochs=4), init_from=source)
    kept = {"init_from": str(tmp_path / "exp1"), "checkpoint": str(tmp_path / "exp2")}
    train(grown(), TrainConfig(max_epochs=2), **kept)
    (tmp_path / "exp1").rename(tmp_path / "elsewhere")
    trainer = train(grown(), TrainConfig(max_epochs=4), **kept)
    assert same(trainer, once)
    assert trainer.training_summary.init_from["source"] == str(tmp_path / "exp1")
    assert trainer.training_summary.resumed_from_epoch == 2


def test_a_run_is_not_continued_with_other_first_weights(tmp_path: Path):
    sources = [train(ready(), TrainConfig(max_epochs=n))._neural_net for n in (1, 2)]
    train(grown(), TrainConfig(**FEW), init_from=sources[0], checkpoint=str(tmp_path / "a"))
    train(grown(), TrainConfig(**FEW), checkpoint=str(tmp_path / "b"))
    for folder, text in (("a", "init_from gives others"), ("b", "the run had no init_from")):
        with pytest.raises(CheckpointMismatchError, match=text):
            train(
                grown(),
                TrainConfig(max_epochs=4),
                init_from=sources[1],
                checkpoint=str(tmp_path / folder),
            )
    left_out = train(grown(), TrainConfig(max_epochs=4), checkpoint=str(tmp_path / "a"))
    assert left_out.training_summary.init_from["source"] == "estimator NFlowsFlow"


def test_a_later_round_may_begin_with_them_too():
    source = train(ready(), TrainConfig(**FEW))
    trainer = second_round(train(grown(), TrainConfig(**FEW)))
    assert same(first_weights(trainer, TrainConfig(**FEW), init_from=source._neural_net), source)


def test_a_zuko_flow_brings_its_order_of_features():
    build = posterior_nn("zuko_maf", hidden_features=8, num_transforms=2)
    source = train(ready(density_estimator=build), TrainConfig(**FEW))
    torch.manual_seed(77)
    trainer, first = append(empty("NPE_C", density_estimator=build), *draw()), First()
    train(trainer, TrainConfig(**FEW), init_from=source._neural_net, callbacks=first)
    assert torch.equal(losses(first.model, source), losses(source._neural_net, source))
