"""What a call of train() says twice, or to no effect, is refused or warned of, in both forms."""

from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Events

from sbi_ignite import (
    ArgumentError,
    CheckpointConfig,
    EarlyStopping,
    LossArgsNPE,
    LossArgsNRE,
    LossArgsNRE_C,
    LossArgsVF,
    LRSchedule,
    SbiIgniteWarning,
    SettingsError,
    Stage,
    TrainConfig,
    find_learning_rate,
)
from tests.small import (
    METHODS,
    SBI_WARNS,
    append,
    draw,
    empty,
    ready,
    same,
    standing_still,
    train,
    weights,
)

pytestmark = SBI_WARNS


def quarter(parameters):
    return torch.optim.SGD(parameters, lr=0.25, weight_decay=0.5)


def recorded(trainer, name):
    entry = trainer.training_summary.config["train"][name]
    return entry["value"], entry["origin"], entry["where"]


CONTRADICTIONS = {
    "rate of a callable": (
        lambda: TrainConfig(learning_rate=0.1, optimizer=quarter),
        r"learning_rate=0.1 from .*TrainConfig\(learning_rate.* and optimizer=.*quarter",
    ),
    "decay of a callable": (
        lambda: TrainConfig(weight_decay=0.1, optimizer=quarter),
        r"weight_decay=0.1 .* and optimizer=.*quarter",
    ),
    "two batch sizes": (
        lambda: TrainConfig(batch_size=5, dataloader_kwargs={"batch_size": 7}),
        r"batch_size=5 from .* and batch_size=7 from .*TrainConfig\(dataloader_kwargs",
    ),
    "batches of a sampler": (
        lambda: TrainConfig(batch_size=5, dataloader_kwargs={"batch_sampler": [[0]]}),
        r"batch_size=5 from .* and batch_sampler=\[\[0\]\]",
    ),
    "a first stage relative to nothing": (
        lambda: TrainConfig(stages=[Stage(max_relative_length=0.5)]),
        r"max_relative_length of the first stage.*0.5 from .*stages",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused_at_birth(name):
    make, message = CONTRADICTIONS[name]
    with pytest.raises(SettingsError, match=message):
        make()


def test_a_keyword_beside_a_callable_optimizer_is_refused_by_both_names():
    with pytest.raises(SettingsError, match=r"train\(learning_rate=\.\.\.\) and optimizer="):
        ready().train(TrainConfig(optimizer=quarter), learning_rate=0.1)


def test_never_stopping_beside_sbis_patience_is_refused_by_both_names():
    never = EarlyStopping.never()
    with pytest.raises(ArgumentError, match=r"never\(\) and stop_after_epochs=3"):
        ready().train(early_stopping=never, stop_after_epochs=3)


def test_a_variable_beside_a_batch_size_for_the_loader_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__BATCH_SIZE", "5")
    for call in (
        lambda: ready().train(TrainConfig(dataloader_kwargs={"batch_size": 7})),
        lambda: ready().train(dataloader_kwargs={"batch_size": 7}),
    ):
        with pytest.raises(SettingsError, match=r"SBI_IGNITE_TRAIN__BATCH_SIZE and batch_size=7"):
            call()


def test_the_record_says_what_a_callable_optimizer_and_the_loaders_keywords_decide(tmp_path):
    trainer = ready()
    config = TrainConfig(max_epochs=1, optimizer=quarter, dataloader_kwargs={"batch_size": 7})
    trainer.train(config, checkpoint=str(tmp_path))
    assert recorded(trainer, "learning_rate") == (0.25, "optimizer", "TrainConfig(optimizer=...)")
    assert recorded(trainer, "weight_decay") == (0.5, "optimizer", "TrainConfig(optimizer=...)")
    kwargs = "TrainConfig(dataloader_kwargs=...)"
    assert recorded(trainer, "batch_size") == (7, "loader", kwargs)
    assert trainer.training_summary.learning_rate == (0.25,)
    assert '"loader"' in (tmp_path / "run.json").read_text()


def test_sbis_keywords_alone_mean_what_they_mean_in_sbi_and_the_record_says_it():
    trainer = ready()
    trainer.train(max_num_epochs=1, training_batch_size=5, dataloader_kwargs={"batch_size": 7})
    assert recorded(trainer, "batch_size") == (7, "loader", "train(dataloader_kwargs=...)")
    trainer.train(max_num_epochs=2, learning_rate=0.1, resume_training=True)
    assert recorded(trainer, "learning_rate")[:2] == (5e-4, "optimizer")


def test_a_resumed_training_records_the_rate_with_which_it_goes_on():
    trainer = train(ready(), TrainConfig(max_epochs=1, learning_rate=1e-3, lr_schedule="plateau"))
    trainer.train(TrainConfig(max_epochs=2, resume_training=True, lr_schedule="plateau"))
    assert recorded(trainer, "learning_rate")[:2] == (1e-3, "optimizer")


def test_a_resumed_training_records_the_optimizer_with_which_it_goes_on():
    first = TrainConfig(max_epochs=1, optimizer="sgd", weight_decay=0.5)
    trainer = train(ready(), first)
    trainer.train(TrainConfig(max_epochs=2, resume_training=True))
    assert recorded(trainer, "optimizer")[:2] == ("torch.optim.sgd.SGD", "optimizer")
    assert recorded(trainer, "weight_decay")[:2] == (0.5, "optimizer")


@pytest.mark.parametrize("said", [{}, {"lr_schedule": None}])
def test_a_schedule_is_named_again_by_who_resumes(said):
    trainer = train(ready(), TrainConfig(max_epochs=2, lr_schedule="cosine"))
    with pytest.raises(ArgumentError, match=r"has lr_schedule='cosine'.*lr_schedule=None.*again"):
        trainer.train(TrainConfig(max_epochs=4, resume_training=True, **said))


def test_a_new_rate_is_relative_to_that_of_the_callable_optimizer_before():
    trainer = train(ready(), TrainConfig(max_epochs=1, optimizer=quarter))
    trainer.train(TrainConfig(max_epochs=2, learning_rate=1e-3, resume_training=True))
    assert trainer.training_summary.learning_rate == (0.25, 1e-3)


def test_the_range_of_rates_is_tried_with_a_callable_optimizer_too():
    seen = []

    def noting(parameters):
        seen.append(torch.optim.SGD(parameters, lr=0.25))
        return seen[-1]

    found = find_learning_rate(
        ready(), TrainConfig(optimizer=noting), min_rate=1e-6, max_rate=1e-4, num_steps=20
    )
    (optimizer,) = seen
    assert optimizer.param_groups[0]["lr"] == pytest.approx(found.rates[-1], rel=0.5)


# --- resume_training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "sgd"),
        ("weight_decay", 0.5),
        ("validation_fraction", 0.3),
        ("seed", 4),
        ("lr_schedule", "one_cycle"),
    ],
)
def test_what_cannot_change_on_the_way_is_refused_by_both_values(field, value):
    trainer = train(ready(), TrainConfig(max_epochs=1, seed=3, lr_schedule="plateau"))
    before = weights(trainer)
    fields = {"lr_schedule": "plateau", field: value}
    config = TrainConfig(max_epochs=2, resume_training=True, **fields)
    with pytest.raises(ArgumentError, match=rf"has {field}=.*got {field}={value!r} from .*{field}"):
        trainer.train(config)
    assert same(trainer, before)
    same_again = {"seed": 3, "lr_schedule": LRSchedule("plateau"), "optimizer": "adam"}
    trainer.train(TrainConfig(max_epochs=2, resume_training=True, **same_again))
    assert trainer.training_summary.epochs_trained == 2


def test_resuming_and_retraining_exclude_each_other():
    trainer = train(ready(), TrainConfig(max_epochs=1))
    both = {"resume_training": True, "retrain_from_scratch": True}
    with pytest.raises(ArgumentError, match=r"resume_training=True from .*retrain_from_scratch="):
        trainer.train(TrainConfig(max_epochs=2, **both))
    with pytest.raises(ArgumentError, match=r"train\(retrain_from_scratch"):
        trainer.train(TrainConfig(resume_training=True), retrain_from_scratch=True)


def test_resuming_and_retraining_in_sbis_form_warns(monkeypatch):
    trainer = train(ready(), max_num_epochs=1)
    monkeypatch.setattr(type(trainer), "_run_training_loop", lambda self, *args, **kwargs: None)
    with pytest.warns(SbiIgniteWarning, match=r"exclude each other.*As in sbi"):
        trainer.train(max_num_epochs=2, resume_training=True, retrain_from_scratch=True)


def test_resuming_in_a_directory_that_starts_anew_is_refused(tmp_path):
    trainer = train(ready(), TrainConfig(max_epochs=1))
    anew = CheckpointConfig(tmp_path, resume="never")
    with pytest.raises(ArgumentError, match=r"resume_training=True from .*resume=\"never\" from"):
        trainer.train(TrainConfig(max_epochs=2, resume_training=True), checkpoint=anew)


def test_a_training_without_a_directory_is_continued_exactly_in_one(tmp_path):
    whole = train(ready(), TrainConfig(max_epochs=6))
    legs = train(ready(), TrainConfig(max_epochs=2))
    more = TrainConfig(max_epochs=6, resume_training=True)
    legs.train(more, checkpoint=str(tmp_path))
    assert same(whole, legs)
    assert legs.training_summary.resumed_from_epoch == 2
    assert whole.training_summary.training_loss == legs.training_summary.training_loss


def test_a_script_that_always_resumes_from_its_directory_begins_without_a_warning(tmp_path):
    trainer = ready()
    config = TrainConfig(max_epochs=1, resume_training=True)
    trainer.train(config, checkpoint=str(tmp_path))
    assert trainer.training_summary.epochs_trained == 1


def test_how_steps_are_computed_is_refused_where_a_trainer_computes_them_itself():
    from sbi_ignite.inference import NPE_C

    class Mine(NPE_C):
        def _train_epoch(self, *args):
            return super()._train_epoch(*args)

    trainer = append(Mine(show_progress_bars=False), *draw())
    for name, value in {"compile": "trace", "precision": "bf16-mixed"}.items():
        with pytest.raises(SettingsError, match=rf"_train_epoch.*Mine.*{name}={value!r} from"):
            trainer.train(TrainConfig(max_epochs=1, **{name: value}))


# --- dataloader_kwargs


@pytest.mark.parametrize(
    ("name", "typed"),
    [("NPE_C", True), ("NPE_C", False), ("NRE_B", False), ("MarginalTrainer", True)],
)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_workerz": 1}, r"no 'num_workerz' \(did you mean 'num_workers'\?\).*=1 from the"),
        ({"dataset": 1}, r"no 'dataset'"),
        ({"persistent_workers": True}, r"got .*persistent_workers.* from the call .*: persistent"),
    ],
)
def test_keywords_that_torchs_loader_does_not_take_are_refused_by_their_origin(
    name, typed, kwargs, message
):
    trainer = ready(name)
    arguments = (TrainConfig(dataloader_kwargs=kwargs),) if typed else ()
    keywords = {} if typed else {"dataloader_kwargs": kwargs}
    with pytest.raises(SettingsError, match=message) as caught:
        trainer.train(*arguments, **keywords)
    assert isinstance(caught.value, TypeError)
    assert "dataloader_kwargs=...)" in str(caught.value)


def test_a_sampler_of_batches_decides_about_them():
    class First(torch.utils.data.BatchSampler):
        """The first eight rows, four at a time."""

    sampler = First(range(8), batch_size=4, drop_last=False)
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=1, dataloader_kwargs={"batch_sampler": sampler}))
    assert recorded(trainer, "batch_size")[:2] == (4, "loader")


# --- devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
@pytest.mark.parametrize("name", METHODS)
def test_a_device_that_is_not_there_is_refused_before_anything_is_trained(name, monkeypatch):
    trainer = empty(name)
    append(trainer, *draw())
    with pytest.raises(SettingsError, match=r"no CUDA device.*TrainConfig\(device=\.\.\.\)"):
        trainer.train(TrainConfig(device="cuda"))
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DEVICE", "cuda")
    with pytest.raises(SettingsError, match=r"no CUDA device.*SBI_IGNITE_TRAIN__DEVICE"):
        trainer.train()
    assert trainer._neural_net is None


@pytest.mark.parametrize("name", METHODS)
def test_a_test_of_convergence_that_is_not_asked_is_named_in_a_warning(name):
    """Sbi's keywords ask it, a TrainConfig does not."""
    trainer = ready(name)
    trainer._converged = lambda epoch, stop_after_epochs: epoch >= 2
    with pytest.warns(SbiIgniteWarning, match=r"overrides sbi's own test of convergence"):
        trainer.train(TrainConfig(max_epochs=4))
    assert trainer.training_summary.epochs_trained == 4


# --- loss arguments


@pytest.mark.parametrize(
    ("name", "first", "second", "argument"),
    [
        ("NRE_B", LossArgsNRE(num_atoms=5), None, "num_atoms=5"),
        ("NRE_C", LossArgsNRE_C(gamma=1.0), LossArgsNRE_C(gamma=5.0), "gamma=1.0"),
        ("FMPE", LossArgsVF(validation_times=5), LossArgsVF(validation_times=2), "validation_t"),
        (
            "NPE_C",
            LossArgsNPE(calibration_kernel=lambda x: torch.ones(len(x))),
            LossArgsNPE(calibration_kernel=lambda x: 2 * torch.ones(len(x))),
            "calibration_kernel=another function",
        ),
    ],
)
def test_losses_of_two_kinds_are_not_compared_by_a_resumed_training(name, first, second, argument):
    trainer = train(ready(name), TrainConfig(max_epochs=1), first)
    with pytest.raises(ArgumentError, match=f"has {argument}.*cannot be compared"):
        trainer.train(TrainConfig(max_epochs=2, resume_training=True), second)
    trainer.train(TrainConfig(max_epochs=2, resume_training=True), first)
    assert trainer.training_summary.epochs_trained == 2


@pytest.mark.parametrize("name", ["NPE_C", "FMPE"])
@pytest.mark.parametrize(
    ("kernel", "got"),
    [
        (lambda: 1, "fails for x of shape"),
        (lambda x: None, "returns a NoneType"),
        (lambda x: x.numpy()[:, 0], "returns a ndarray"),
    ],
)
def test_a_kernel_that_does_not_weight_rows_is_refused_by_its_name(name, kernel, got):
    arguments = LossArgsNPE if name == "NPE_C" else LossArgsVF
    with pytest.raises(ArgumentError, match=f"calibration_kernel: expected .* {got}"):
        ready(name).train(TrainConfig(max_epochs=1), arguments(calibration_kernel=kernel))


@pytest.mark.parametrize("name", ["NPE_C", "FMPE"])
def test_a_kernel_that_weights_no_row_is_refused(name):
    """Its loss is zero, which would count as perfect."""
    arguments = LossArgsNPE if name == "NPE_C" else LossArgsVF
    with pytest.raises(ArgumentError, match="weights above zero, got zero for all 120 rows of x"):
        ready(name).train(
            TrainConfig(max_epochs=1), arguments(calibration_kernel=lambda x: torch.zeros(len(x)))
        )


def test_atoms_that_a_batch_cannot_fill_are_recorded_as_used(tmp_path):
    """Beside the number that was asked for, which a continued run compares."""
    trainer = ready("NRE_B")
    trainer.train(
        TrainConfig(max_epochs=1, batch_size=20),
        LossArgsNRE(num_atoms=50),
        checkpoint=str(tmp_path),
    )
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["loss_arguments"]["num_atoms"] == 50
    assert manifest["num_atoms_used"] == 20


def test_sbis_form_calls_a_kernel_as_often_as_sbi():
    calls = []

    def counting(x):
        calls.append(len(x))
        return torch.ones(len(x))

    ready().train(max_num_epochs=1, training_batch_size=50, calibration_kernel=counting)
    assert set(calls[:2]) == {50}


def test_weights_of_another_shape_are_refused_in_the_typed_form():
    kernel = LossArgsNPE(calibration_kernel=lambda x: torch.ones(len(x), 1))
    with pytest.raises(ArgumentError, match=r"returns \(3, 1\) for x of shape .*squeeze\(1\)"):
        ready().train(TrainConfig(max_epochs=1), kernel)


def test_trying_a_kernel_draws_no_random_numbers():
    def noisy(x):
        return 1 + 0 * torch.rand(len(x))

    kernel = LossArgsNPE(calibration_kernel=noisy)
    plain = LossArgsNPE(calibration_kernel=lambda x: 1 + 0 * torch.rand(len(x)))
    first = train(ready(), TrainConfig(max_epochs=1), kernel)
    second = train(ready(), TrainConfig(max_epochs=1), plain)
    assert same(first, second)


def test_a_variable_that_resumes_starts_an_unchanged_script_anew_with_a_word(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__RESUME_TRAINING", "true")
    trainer = ready()
    with pytest.warns(SbiIgniteWarning, match="has no training to continue yet"):
        trainer.train(max_num_epochs=1)
    assert trainer.training_summary.epochs_trained >= 1


# --- order and size of batches


@pytest.mark.parametrize("name", ["NPE_C", "NRE_B", "MarginalTrainer"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"drop_last": True},
        {"drop_last": False},
        {"sampler": None},
        {"batch_sampler": None, "drop_last": False},
    ],
    ids=str,
)
def test_rows_are_shuffled_unless_shuffling_is_declined(name, kwargs):
    orders = orders_of(name, kwargs)
    assert not torch.equal(*orders)
    if not kwargs.get("drop_last"):
        assert torch.equal(*(order.sort().values for order in orders))
    declined = orders_of(name, {"shuffle": False})
    assert torch.equal(*declined)


def orders_of(name, kwargs):
    """Return the first column of two epochs, row after row."""
    rows = [[], []]

    class Watch:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

        def note(self, engine):
            rows[engine.state.epoch - 1].append(engine.state.batch[0].reshape(-1)[::2])

    config = TrainConfig(max_epochs=2, batch_size=16, dataloader_kwargs=kwargs)
    train(ready(name), config, callbacks=[Watch()])
    return [torch.cat(epoch) for epoch in rows]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"sampler": torch.utils.data.RandomSampler(range(108))},
        {"batch_sampler": [[1, 2, 3], [107, 4]]},
        {"batch_size": 7, "drop_last": True},
    ],
    ids=["sampler", "batch_sampler", "batch_size"],
)
def test_samplers_are_for_training_rows_and_every_validation_row_counts(kwargs):
    rows = []

    def collate(items):
        rows.append(len(items))
        return torch.utils.data.default_collate(items)

    trainer = ready()
    kwargs = {**kwargs, "collate_fn": collate}
    config = TrainConfig(max_epochs=1, optimizer=standing_still, dataloader_kwargs=kwargs)
    train(trainer, config)
    trained, all_rows = sum(len(b) for b in trainer_batches(kwargs)), sum(rows)
    assert all_rows - trained == len(trainer.val_indices) == 12


def trainer_batches(kwargs):
    if "batch_sampler" in kwargs:
        return kwargs["batch_sampler"]
    return [range(7)] * 15 if "batch_size" in kwargs else [range(108)]


def test_a_timeout_without_workers_is_refused():
    config = TrainConfig(max_epochs=1, dataloader_kwargs={"timeout": 3})
    with pytest.raises(SettingsError, match="expected num_workers beside timeout"):
        ready().train(config)


# --- times of vector fields


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_times": 0},
        {"validation_times": -3},
        {"validation_times": 2.5},
        {"validation_times": "10"},
        {"validation_times": [0.1, 0.5]},
        {"validation_times": torch.zeros(0)},
        {"validation_times": torch.full((3, 2), 0.5)},
        {"validation_times": torch.tensor([0.1, 5.0])},
        {"validation_times": torch.tensor([float("nan")])},
        {"validation_times_nugget": 0.5},
    ],
    ids=str,
)
def test_times_outside_the_interval_are_refused_at_birth(wrong):
    (name,) = wrong
    with pytest.raises(SettingsError, match=rf"LossArgsVF\.{name}: expected .*, got"):
        LossArgsVF(**wrong)


def test_times_inside_the_interval_are_taken():
    times = torch.tensor([0.0, 0.3, 1.0])
    assert LossArgsVF(validation_times=times, validation_times_nugget=2.0).validation_times is times
