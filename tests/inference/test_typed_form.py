"""The typed form: every name means what it says, for every method."""

from __future__ import annotations

import pytest
import sbi.inference
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

import sbi_ignite.inference
from sbi_ignite import EarlyStopping, LRSchedule, SbiIgniteWarning, TrainConfig
from sbi_ignite.bridge.batches import _large_batch as large_batch
from sbi_ignite.bridge.batches import make_loaders
from sbi_ignite.bridge.lines import private
from tests.small import (
    METHODS,
    SBI_WARNS,
    Watch,
    append,
    draw,
    ready,
    same,
    second_round,
    standing_still,
)

pytestmark = SBI_WARNS


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return rows in an order of their own, so that two sets of them can be compared."""
    return torch.tensor(sorted(map(tuple, rows.tolist())))


@pytest.fixture(params=METHODS)
def trained(request: pytest.FixtureRequest):
    """Return a trainer of each method after three typed epochs, and what was seen meanwhile."""
    trainer, watch = ready(request.param), Watch()
    config = TrainConfig(batch_size=25, max_epochs=3, learning_rate=0.02)
    net = trainer.train(config, callbacks=[watch])
    return trainer, watch, net


def test_typed_epochs_rows_batches_and_best_weights_mean_what_they_say(trained):
    """max_epochs=N is N; each epoch takes every training row once, in even batches; best returned.

    One training per method serves all these promises.
    """
    trainer, watch, net = trained
    summary = trainer.training_summary

    assert summary.epochs_trained == trainer.epoch == 3
    assert summary.stop_reason == "max_epochs"
    lists = ("training_loss", "validation_loss", "learning_rate", "epoch_durations_sec")
    assert [len(getattr(summary, name)) for name in lists] == [3] * 4
    assert trainer._summary["epochs_trained"] == [3]
    assert len(trainer._summary["validation_loss"]) == 3

    everything = (
        trainer.get_samples() if "Marginal" in summary.method else trainer.get_simulations()[0]
    )
    expected = sorted_rows(everything[trainer.train_indices])
    assert len(trainer.train_indices) == 108
    for epoch in watch.batches:
        assert torch.equal(sorted_rows(torch.cat(epoch)), expected)
        assert {len(batch) for batch in epoch} == {21, 22}
    assert not torch.equal(watch.batches[0][0], watch.batches[1][0])

    best = summary.validation_loss.index(min(summary.validation_loss))
    assert summary.best_epoch == best + 1
    assert summary.best_validation_loss == min(summary.validation_loss)
    assert net is trainer._neural_net
    assert same(net, watch.weights[best])
    assert not same(watch.weights[0], watch.weights[2])


@pytest.mark.parametrize("name", METHODS)
def test_validation_loss_of_the_same_weights_is_always_the_same_number(name):
    """With an optimizer that changes nothing, all epochs have one validation loss, bit for bit."""
    trainer, watch = ready(name), Watch()
    config = TrainConfig(batch_size=25, max_epochs=3, optimizer=standing_still)

    trainer.train(config, callbacks=[watch])

    losses = trainer.training_summary.validation_loss
    assert len(losses) == 3
    assert len(set(losses)) == 1
    assert not torch.equal(watch.batches[0][0], watch.batches[1][0])


def test_validation_loss_of_the_atomic_loss_is_always_the_same_number():
    """The atoms of the second round are drawn anew for training, and the same for validation."""
    trainer = ready("NPE_C", num_rows=100)
    trainer.train(TrainConfig(max_epochs=2))
    second_round(trainer)

    trainer.train(TrainConfig(batch_size=50, max_epochs=3, optimizer=standing_still))

    summary = trainer.training_summary
    assert len(set(summary.validation_loss)) == 1
    assert len(set(summary.training_loss)) == 3


@pytest.mark.parametrize("name", ["NPE_C", "NLE_A", "MarginalTrainer"])
def test_validation_loss_is_the_mean_over_all_validation_rows(name):
    """Recomputed by hand from the returned network, the best validation loss is the same."""
    trainer = ready(name, num_rows=130)
    net = trainer.train(TrainConfig(batch_size=10, max_epochs=4, learning_rate=0.01))
    rows = trainer.val_indices
    with torch.no_grad():
        if name == "MarginalTrainer":
            losses = net.loss(trainer.get_samples()[rows])
        else:
            theta, x, _ = trainer.get_simulations()
            pair = (theta, x) if name == "NPE_C" else (x, theta)
            losses = net.loss(pair[0][rows], pair[1][rows])

    assert losses.shape == (13,)
    assert losses.mean().item() == pytest.approx(trainer._best_val_loss, rel=1e-6)
    assert trainer._best_val_loss == trainer.training_summary.best_validation_loss


def test_validation_does_not_depend_on_the_random_state_or_disturb_it():
    """The global generators go on after validation as if it had not happened."""

    def next_draw(validation_times: int) -> float:
        from sbi_ignite import LossArgsVF

        trainer = ready("FMPE")
        trainer.train(TrainConfig(max_epochs=2), LossArgsVF(validation_times=validation_times))
        return torch.rand(1).item()

    assert next_draw(3) == next_draw(10)


def test_a_seed_makes_trainings_equal_whatever_the_random_state():
    """seed=S decides split, network and batches."""

    def train(state: int, seed: int):
        trainer = ready()
        torch.manual_seed(state)
        trainer.train(TrainConfig(max_epochs=2, seed=seed))
        return trainer

    first = train(1, seed=5)
    assert same(first, train(2, seed=5))
    assert not same(first, train(1, seed=6))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_optimizers_are_chosen_by_name_and_get_rate_and_decay(name, kind):
    trainer = ready()
    trainer.train(TrainConfig(optimizer=name, learning_rate=0.003, weight_decay=0.25, max_epochs=1))

    assert type(trainer.optimizer) is kind
    assert trainer.optimizer.param_groups[0]["lr"] == 0.003
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.25


def test_an_optimizer_may_be_a_callable():
    """The callable gets the network's parameters, and its optimizer is the one that steps."""
    made = []

    def rmsprop(parameters):
        made.append(torch.optim.RMSprop(parameters, lr=0.01))
        return made[-1]

    trainer = ready()
    net = trainer.train(TrainConfig(optimizer=rmsprop, max_epochs=1))

    assert trainer.optimizer is made[0]
    held = [p for group in made[0].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}
    assert made[0].state, "the optimizer never stepped"


def test_an_optimizer_callable_that_returns_something_else_is_refused():
    with pytest.raises(TypeError, match=r"returns a torch optimizer.*'adam'"):
        ready().train(TrainConfig(optimizer=lambda parameters: "adam"))


class Distance:
    """How far the parameters move in the first epoch."""

    def on_train_start(self, state):
        self._start = [p.detach().clone() for p in state.model.parameters()]

    def on_epoch_end(self, state):
        pairs = zip(state.model.parameters(), self._start, strict=True)
        self.moved = sum((p - q).square().sum() for p, q in pairs).sqrt().item()


def test_clipping_bounds_the_step_and_none_leaves_gradients_alone():
    """With SGD the size of one step is rate times gradient norm, so clipping shows in it."""

    def step_size(clip_max_norm):
        trainer, watch = ready(), Distance()
        config = TrainConfig(
            batch_size=108,
            max_epochs=1,
            optimizer="sgd",
            learning_rate=1.0,
            clip_max_norm=clip_max_norm,
        )
        trainer.train(config, callbacks=[watch])
        return watch.moved, trainer.training_summary.gradient_norm[0]

    free, measured = step_size(None)
    clipped, norm = step_size(1e-3)
    assert clipped == pytest.approx(1e-3, rel=1e-2)
    assert measured == pytest.approx(free, rel=1e-3)
    assert norm == pytest.approx(free, rel=1e-3)
    assert free > 1e-2


def test_device_moves_the_training():
    trainer = ready()
    trainer.train(TrainConfig(device="cpu", max_epochs=1))
    assert trainer.training_summary.device == "cpu"


def test_a_device_that_is_not_there_is_refused_before_training():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    trainer = ready()
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"(?i)cuda|gpu"):
        trainer.train(TrainConfig(device="cuda:0"))
    assert trainer._neural_net is None


def test_a_schedule_may_be_a_callable():
    """`optimizer -> scheduler` is stepped after every epoch."""
    trainer = ready()
    halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # noqa: E731
    trainer.train(TrainConfig(learning_rate=0.008, lr_schedule=halve, max_epochs=4))
    assert trainer.training_summary.learning_rate == (0.008, 0.004, 0.002, 0.001)


@pytest.mark.parametrize("schedule", ["plateau", LRSchedule("plateau", factor=0.1, patience=0)])
def test_a_plateau_lowers_the_rate_until_the_threshold_stops(schedule):
    """At a constant loss the rate falls, and EarlyStopping.lr_threshold ends the training."""
    trainer = ready()
    min_lr = 4e-4 if schedule == "plateau" else 1e-5

    def almost_still(parameters):
        return torch.optim.SGD(parameters, lr=5e-4)

    trainer.train(
        TrainConfig(
            lr_schedule=schedule, max_epochs=40, optimizer=almost_still, clip_max_norm=1e-12
        ),
        early_stopping=EarlyStopping.lr_threshold(min_lr),
    )

    summary = trainer.training_summary
    assert summary.stop_reason == "lr_threshold"
    assert summary.learning_rate[0] == 5e-4
    assert trainer.optimizer.param_groups[0]["lr"] < min_lr
    assert summary.epochs_trained < 40


def test_the_default_learning_rate_and_batch_size_are_those_of_the_contract():
    trainer, watch = ready(num_rows=500), Watch()
    trainer.train(TrainConfig(max_epochs=1), callbacks=[watch])
    assert trainer.training_summary.learning_rate == (5e-4,)
    assert [len(batch) for batch in watch.batches[0]] == [150, 150, 150]


def test_dataloader_kwargs_keep_every_row_and_the_same_validation_number():
    """A user's collate_fn sees the rows; batches stay even and validation stays one number."""
    seen: list[int] = []

    def collate(rows):
        seen.append(len(rows))
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    trainer = ready()
    trainer.train(
        TrainConfig(
            batch_size=25,
            max_epochs=2,
            optimizer=standing_still,
            dataloader_kwargs={"collate_fn": collate},
        )
    )
    assert sorted(seen[:5]) == [21, 21, 22, 22, 22]
    assert sum(seen) == 2 * 120
    assert len(set(trainer.training_summary.validation_loss)) == 1


def test_show_train_summary_prints_a_summary(capsys):
    ready().train(TrainConfig(max_epochs=1, show_train_summary=True))
    assert "Best validation performance" in capsys.readouterr().out


def test_an_optimizer_that_stands_still_is_what_keeps_the_validation_loss():
    """The tests above would be idle if nothing were trained without it."""
    trainer = ready()
    trainer.train(TrainConfig(batch_size=25, max_epochs=3))
    assert len(set(trainer.training_summary.validation_loss)) == 3


@pytest.mark.parametrize(
    ("name", "batch_size", "expected"),
    [
        ("NPE_C", 4, 12),
        ("NLE_A", 4, 12),
        ("FMPE", 4, 12),
        ("NRE_B", 4, 4),
        ("NRE_B", 10, 12),
        ("NRE_A", 4, 12),
        ("NRE_C", 5, 5),
        ("NRE_C", 6, 12),
        ("BNRE", 10, 10),
    ],
)
def test_validation_takes_many_rows_at_a_time_where_rows_mean_the_same(
    name, batch_size, expected, monkeypatch
):
    """Ratio losses do where training has theta enough for as many pairs, and nothing is squared."""
    loaders = []

    def keep(*args):
        loaders.extend(make_loaders(*args))
        return loaders

    monkeypatch.setattr("sbi_ignite.bridge.train.make_loaders", keep)
    ready(name).train(TrainConfig(batch_size=batch_size, max_epochs=1))
    assert loaders[0].batch_size == batch_size
    assert loaders[1].batch_size == expected


@pytest.mark.parametrize(
    ("device", "columns", "expected"),
    [("cpu", 2, 256), ("cuda", 2, 1_024), ("cpu", 2**14, 10), ("cuda", 2**17, 10)],
)
def test_batches_of_validation_fit_the_cache_of_a_cpu_and_fill_a_gpu(device, columns, expected):
    """With large rows, there are as many as training takes."""
    tensors = [torch.zeros(2_000, 1).expand(2_000, columns // 2)] * 2
    assert large_batch(tensors, 10, torch.device(device)) == expected


def test_large_rows_that_a_loss_repeats_are_validated_a_few_at_a_time():
    images = [torch.zeros(2_000, 1).expand(2_000, 4_096)]
    assert large_batch(images, 1_024, torch.device("cpu")) == 1_024
    assert large_batch(images, 1_024, torch.device("cpu"), repeats=10) == 102


def test_the_validation_loss_is_the_mean_over_all_rows_however_they_are_cut():
    losses = []
    for rows in (1, 5, 1_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sbi_ignite.bridge.batches._VALIDATION_ROWS_ON_CPU", rows)
            trainer = ready("NPE_C")
            trainer.train(TrainConfig(batch_size=2, max_epochs=1, optimizer=standing_still, seed=0))
            losses.append(trainer.training_summary.validation_loss[0])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_simulations_appended_at_once_are_not_copied(monkeypatch):
    """And those of several rounds are what sbi joins."""
    trainer = ready("NPE_C")
    tensors = private(trainer).simulations(0)
    assert [t.data_ptr() for t in tensors[:2]] == [
        trainer._theta_roundwise[0].data_ptr(),
        trainer._x_roundwise[0].data_ptr(),
    ]
    assert all(map(torch.equal, tensors, trainer.get_simulations(0)))
    append(trainer, *draw(30))
    assert all(map(torch.equal, private(trainer).simulations(0), trainer.get_simulations(0)))
    monkeypatch.setattr(trainer, "get_simulations", lambda start: "the user's own")
    assert private(trainer).simulations(0) == "the user's own"


def test_the_first_network_is_the_one_that_sbi_builds():
    """With the same seed, permutations between transforms and first weights are the same."""
    theta = BoxUniform(-torch.ones(2), torch.ones(2)).sample((100,))

    def first_weights(module, *config):
        built = []

        def build(theta, x):
            net = posterior_nn("maf")(theta, x)
            built.append({n: v.clone() for n, v in net.state_dict().items()})
            return net

        torch.manual_seed(5)
        trainer = module.NPE(density_estimator=build, show_progress_bars=False)
        trainer.append_simulations(theta, theta)
        trainer.train(*config, **({} if config else {"max_num_epochs": 1}))
        return built[0]

    expected = first_weights(sbi.inference)
    ours = first_weights(sbi_ignite.inference, TrainConfig(max_epochs=1))
    assert same(expected, ours)


def test_a_training_that_ends_within_its_first_epoch_says_so(capsys):
    trainer = ready(show_progress_bars=True)
    with pytest.warns(SbiIgniteWarning, match="validated"):
        trainer.train(TrainConfig(max_time=1e-6, batch_size=5))
    said = capsys.readouterr().out.split("\r")[-1]
    assert said.strip() == "Training ended before the end of its first epoch (time_limit)."
