"""The traps that docs/traps.md warns of, each met again with the real library.

A test that fails here says that a library has changed: then the page changes, too.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import zuko
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, FastaiLRFinder, ModelCheckpoint
from ignite.handlers.param_scheduler import LRScheduler
from nflows.transforms import LULinear
from sbi.diagnostics import run_tarp
from sbi.inference import NPE, simulate_for_sbi
from sbi.neural_nets import posterior_flow_nn, posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor, nn

from tests.docs.pages import DOCS
from tests.small import Silent, box, draw, flow


def silent_engine() -> Engine:
    """Return an engine whose steps do nothing."""
    return Engine(lambda engine, batch: 0.0)


def test_ignites_early_stopping_never_stops_on_nan():
    losses = itertools.chain([1.0], itertools.repeat(math.nan))
    trainer, evaluator = silent_engine(), silent_engine()
    rule = EarlyStopping(patience=2, score_function=lambda _: -next(losses), trainer=trainer)
    for _ in range(10):
        rule(evaluator)
    assert rule.counter == 0
    assert not trainer.should_terminate


def test_ignites_model_checkpoint_keeps_a_first_nan(tmp_path: Path):
    scores = iter([math.nan, 1.0, 2.0])
    engine = silent_engine()
    saver = ModelCheckpoint(tmp_path, score_function=lambda _: next(scores), score_name="score")
    engine.add_event_handler(Events.EPOCH_COMPLETED, saver, {"model": nn.Linear(1, 1)})
    engine.run([0], max_epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["model_score=nan.pt"]


def rates(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, ignites: bool
) -> list[float]:
    """Return the learning rates of four steps."""
    seen = []

    def step(engine: Engine, batch: int) -> None:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    engine = Engine(step)
    if ignites:
        engine.add_event_handler(Events.ITERATION_STARTED, LRScheduler(schedule))
    else:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    engine.run([0] * 4, max_epochs=1)
    return seen


def test_ignites_wrapper_of_torchs_schedulers_gives_other_rates():
    """At the event that its documentation names; a linear warm-up is ten times too small."""
    found = {}
    for ignites in (False, True):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        found[ignites] = rates(optimizer, linear, ignites)
    assert found[False] == pytest.approx([0.1, 0.28, 0.46, 0.64])
    assert found[True] == pytest.approx([0.01, 0.028, 0.046, 0.064])


def test_ignites_rate_finder_ends_at_once_on_negative_losses():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step(engine: Engine, batch: int) -> float:
        optimizer.zero_grad()
        loss = 0.0 * model(torch.ones(1, 1)).mean() - 5.0 - 0.01 * engine.state.iteration
        loss.backward()
        optimizer.step()
        return loss.item()  # falls all the time

    finder = FastaiLRFinder()
    objects = {"model": model, "optimizer": optimizer}
    with finder.attach(Engine(step), objects, num_iter=20) as engine:
        engine.run([0] * 20, max_epochs=1)
    assert len(finder.get_results()["lr"]) == 1


@pytest.mark.parametrize("name", ["NAF", "UNAF", "GF"])
def test_zukos_flows_by_bisection_draw_nothing_beyond_ten(name: str):
    transform = getattr(zuko.flows, name)(1, 0, transforms=1)().transform
    far = torch.tensor([[50.0]])
    with torch.no_grad():
        assert abs(transform.inv(transform(far)).item()) < 10.1


def test_nflows_cached_linear_layer_keeps_old_weights_when_new_ones_are_loaded():
    layers = [LULinear(3, using_cache=True).eval() for _ in range(2)]
    for parameter in itertools.chain(*(layer.parameters() for layer in layers)):
        nn.init.normal_(parameter)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for layer in layers:
            layer(x)
        layers[0].load_state_dict(layers[1].state_dict())
        assert not torch.allclose(layers[0](x)[0], layers[1](x)[0])
        layers[0].train().eval()
        assert torch.allclose(layers[0](x)[0], layers[1](x)[0])


def test_sbi_measures_an_embedding_with_one_row_in_training_mode():
    embedding = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    theta, x = draw(50)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        posterior_nn("maf", embedding_net=embedding)(theta, x)
    posterior_nn("maf", embedding_net=embedding.eval())(theta, x)


def test_sbi_knows_the_fourier_embedding_of_time_by_another_name():
    with pytest.raises(ValueError, match="Unknown time embedding"):
        posterior_flow_nn("mlp", time_emb_type="fourier")(*draw(50))
    posterior_flow_nn("mlp", time_emb_type="random_fourier")(*draw(50))


@pytest.mark.filterwarnings("ignore")  # of sbi, about few samples
def test_sbis_diagnostics_move_the_random_state():
    theta, x = draw(100)
    inference = NPE(box(), flow(), show_progress_bars=False, tracker=Silent())
    inference.append_simulations(theta, x).train(max_num_epochs=1)
    posterior = inference.build_posterior()
    before = torch.get_rng_state()
    run_tarp(theta[:40], x[:40], posterior, num_posterior_samples=20, show_progress_bar=False)
    assert not torch.equal(torch.get_rng_state(), before)


GENERATOR = np.random.default_rng(1)


def noisy(theta: np.ndarray | Tensor) -> Tensor:
    """Add noise of a generator of the simulator's own."""
    return torch.as_tensor(theta + GENERATOR.normal(size=tuple(theta.shape))).float()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_simulator_with_a_generator_of_its_own_repeats_its_noise_in_every_worker():
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    theta, x = simulate_for_sbi(
        noisy, prior, 200, num_workers=2, simulation_batch_size=50, show_progress_bar=False
    )
    noise = (x - theta).flatten()
    assert len(noise.round(decimals=4).unique()) < 200


def test_every_trap_of_the_page_is_shown_by_a_test_or_a_finding():
    text = (DOCS / "traps.md").read_text(encoding="utf-8")
    entries = text.split("\n* ")[1:]
    assert len(entries) >= 12
    assert [e[:60] for e in entries if "`findings/" not in e and "::test_" not in e] == []
