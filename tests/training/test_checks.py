"""What cannot be trained is refused before training or at the first batch, in words of our own."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from sbi_ignite import (
    ArgumentError,
    CheckpointMismatchError,
    EarlyStopping,
    LossArgsNPE,
    SbiIgniteWarning,
    TrainConfig,
    run_training,
)
from tests.small import SBI_WARNS, ready

pytestmark = SBI_WARNS

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def go(model=None, loss_fn=loss, train=BATCHES, validation=None, compile="auto", **arguments):
    fields = arguments.pop("fields", {})
    config = TrainConfig(**{"max_epochs": 1, "compile": compile, **fields})
    return run_training(config, model or mlp(), loss_fn, train, validation, **arguments)[1]


def changes(act):
    """Return a loss function whose losses somebody has done something to."""
    return lambda model, batch: act(loss(model, batch))


# --- losses

NO_LOSSES = {
    "a dict": (changes(lambda losses: {"loss": losses}), r"a dict of 'loss'"),
    "a tuple": (changes(lambda losses: (losses, 0)), r"a tuple of Tensor, int"),
    "a list": (changes(lambda losses: [losses.mean()]), r"a list of Tensor"),
    "a float": (changes(lambda losses: losses.mean().item()), r"a float.*\.item\(\)"),
    "None": (changes(lambda losses: None), r"got None.*return"),
    "numpy": (changes(lambda losses: losses.detach().numpy()), r"a ndarray"),
    "complex": (changes(lambda losses: losses * 1j), r"complex64.*abs"),
    "whole numbers": (changes(lambda losses: losses.long()), r"int64.*float\(\)"),
}
WRONG_SHAPES = {
    "a column": (changes(lambda losses: losses[:, None]), r"shape \(8, 1\).*squeeze\(1\)"),
    "a broadcast": (
        lambda model, batch: (model(batch[0]) - batch[1][:, 0]).square(),
        r"shape \(8, 8\) for a batch of 8 rows.*shape \(batch, 1\) meet",
    ),
    "one loss that is no scalar": (changes(lambda losses: losses.mean()[None]), r"shape \(1,\)"),
    "a mean over rows": (
        lambda model, batch: (model(batch[0]) - batch[0]).square().mean(dim=0),
        r"shape \(3,\) for a batch of 8 rows",
    ),
}
NO_GRADIENT = {
    "detached": (changes(torch.Tensor.detach), r"no gradient of.*detach"),
    "without gradients": (torch.no_grad()(loss), r"no gradient of"),
    "from data alone": (lambda model, batch: batch[1].square().mean(), r"no gradient of"),
}


@pytest.mark.parametrize("compile", ["auto", "trace"])
@pytest.mark.parametrize("name", [*NO_LOSSES, *WRONG_SHAPES, *NO_GRADIENT])
def test_what_is_no_loss_is_refused_at_the_first_batch(name, compile):
    """Nothing has been trained by then."""
    loss_fn, message = (NO_LOSSES | WRONG_SHAPES | NO_GRADIENT)[name]
    model = mlp()
    with pytest.raises(ArgumentError, match=rf"^loss_fn: .*\(batch,\).*{message}"):
        go(model, loss_fn, compile=compile)
    assert all(map(torch.equal, model.parameters(), mlp().parameters()))


@pytest.mark.parametrize("name", [*NO_LOSSES, *WRONG_SHAPES])
def test_what_is_no_loss_is_refused_at_the_first_batch_of_validation(name):
    class Loss:
        def __init__(self, validate):
            self.validate = validate

        def __call__(self, model, batch):
            return loss(model, batch)

    validate, message = (NO_LOSSES | WRONG_SHAPES)[name]
    with pytest.raises(ArgumentError, match=rf"^loss_fn: .*\(batch,\).*{message}"):
        go(loss_fn=Loss(validate), validation=BATCHES)


def test_what_is_no_loss_is_refused_in_bfloat16_too():
    with pytest.raises(ArgumentError, match=r"a dict of 'loss'"):
        go(loss_fn=NO_LOSSES["a dict"][0], fields={"precision": "bf16-mixed"})


def test_losses_of_another_model_are_refused():
    """They have gradients, which train nothing."""
    other = mlp()
    with pytest.raises(ArgumentError, match=r"^loss_fn: .*depend on the parameters of `model`"):
        go(loss_fn=lambda model, batch: loss(other, batch))


RAGGED = [(X, torch.tensor([4, 12, 8])), (X[:9], torch.tensor([4, 5]))]
"""Sets of points, one below the other, and their sizes."""


def set_loss(model, batch):
    points = model(batch[0])[:, 0].split(batch[1].tolist())
    return torch.stack([part.mean().square() for part in points])


@pytest.mark.parametrize(
    ("loss_fn", "batches"),
    [
        (changes(torch.mean), BATCHES),
        (changes(lambda losses: torch.cat([losses, losses])), BATCHES),
        (lambda model, batch: loss(model, (batch["x"], batch["of"]["y"])), None),
        (set_loss, RAGGED),
        (lambda model, batch: loss(model, (batch.x, batch.y)), "objects"),
    ],
    ids=["scalar", "several for every row", "dicts", "sets", "objects"],
)
def test_losses_of_batches_of_many_kinds_are_taken(loss_fn, batches):
    class Pair:
        def __init__(self, x, y):
            self.x, self.y = x, y

    if batches is None:
        batches = [{"name": "a", "x": x, "of": {"y": y}} for x, y in BATCHES]
    elif batches == "objects":
        batches = [Pair(*batch) for batch in BATCHES]
    assert go(loss_fn=loss_fn, train=batches, validation=batches).epochs_trained == 1


def test_means_over_batches_whose_rows_cannot_be_counted_are_told():
    """A batch of 12 rows counts like one of 24; with a loss per row it counts half as much."""

    class Pair:
        def __init__(self, x, y):
            self.x, self.y = x, y

    def of_rows(model, batch):
        return loss(model, (batch.x, batch.y))

    pairs = [Pair(*batch) for batch in BATCHES]
    with pytest.warns(SbiIgniteWarning, match="rows of a Pair without tensors cannot be counted"):
        go(loss_fn=lambda model, batch: of_rows(model, batch).mean(), train=pairs, validation=pairs)
    go(loss_fn=of_rows, train=pairs, validation=pairs)


def test_objects_in_a_batch_move_by_their_own_method():
    moved = []

    class Graph(dict):
        def to(self, device):
            moved.append(device)
            return self

    graphs = [[Graph(x=x, y=y), None, 3] for x, y in BATCHES]
    go(loss_fn=lambda model, batch: loss(model, (batch[0]["x"], batch[0]["y"])), train=graphs)
    assert moved == [torch.device("cpu")] * 3


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda model: 0, r"takes \(model\)"),
        (lambda prediction, target, weight: 0, r"takes \(prediction, target, weight\)"),
        (nn.MSELoss(), r"MSELoss.*compares predictions with targets"),
        (nn.functional.mse_loss, r"mse_loss.*compares predictions with targets"),
        (mlp(), r"takes \(input\)"),
    ],
    ids=["one argument", "three arguments", "a loss of torch", "a function of torch", "a module"],
)
def test_a_loss_function_of_other_arguments_is_refused_before_training(loss_fn, message):
    with pytest.raises(ArgumentError, match=rf"^loss_fn: .*\(model, batch\) -> losses.*{message}"):
        go(loss_fn=loss_fn)


def test_a_loss_function_may_be_anything_that_takes_model_and_batch():
    class Weighted(nn.Module):
        def forward(self, model, batch, weight=2.0):
            return weight * loss(model, batch)

    for loss_fn in (
        Weighted(),
        functools.partial(Weighted(), weight=3.0),
        lambda *both: loss(*both),
    ):
        assert go(loss_fn=loss_fn).epochs_trained == 1


# --- loaders


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(BATCHES)


class Failing(list):
    def __len__(self):
        raise NotImplementedError("not known yet")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Unsized(), batch_size=None), r"Unsized.* has no len"),
        (Failing(BATCHES), r"whose len\(\) fails \(not known yet\)"),
        (dict(enumerate(BATCHES)), r"got dict"),
        ("batches", r"got str"),
    ],
    ids=["a stream", "len that raises", "a dict", "a string"],
)
@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_loader_without_a_length_or_batches_is_refused_before_training(where, loader, message):
    name = "train_loader" if where == "train" else "val_loader"
    with pytest.raises(ArgumentError, match=rf"^{name}: expected an iterable.*{message}"):
        go(**{where: loader})


def test_batches_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        batches = [(x.clone(), y.clone()) for x, y in BATCHES]
    with pytest.raises(ArgumentError, match=r"^train_loader \(list\): .*inference_mode"):
        go(train=batches)


# --- models


def in_inference_mode():
    with torch.inference_mode():
        return mlp()


def on_meta():
    with torch.device("meta"):
        return mlp()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.Identity, r"Identity without any"),
        (lambda: mlp().requires_grad_(False), r"all 4 of this Sequential are frozen"),
        (on_meta, r"0.weight is on the device 'meta'.*to_empty"),
        (lambda: nn.Sequential(nn.LazyLinear(1)), r"0.weight has none yet.*on a batch once"),
        (in_inference_mode, r"0.weight was made under.*inference_mode"),
    ],
    ids=["no parameters", "frozen", "meta", "lazy", "inference mode"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_model_with_nothing_to_train_is_refused_before_training(make, message):
    with pytest.raises(ArgumentError, match=rf"^model: .*{message}"):
        go(make())


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_training_without_gradients_is_refused(mode):
    with getattr(torch, mode)(), pytest.raises(ArgumentError, match=rf"torch\.{mode}\(\).*outside"):
        go()


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_trainers_refuse_to_train_without_gradients(mode, typed):
    trainer = ready()
    arguments = [TrainConfig(max_epochs=1)] if typed else []
    keywords = {} if typed else {"max_num_epochs": 1}
    with getattr(torch, mode)(), pytest.raises(ArgumentError, match=r"gradients.*outside"):
        trainer.train(*arguments, **keywords)


# --- optimizers and schedulers


def other_models(kind=torch.optim.Adam):
    return kind(mlp().parameters(), lr=0.1)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ArgumentError, match=r"^optimizer: .*got Adam with 4.*none.*the 4 that"):
        go(optimizer=other_models())


def test_an_optimizer_of_frozen_parameters_alone_is_refused():
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"^optimizer: .*got SGD with 2.*none.*the 2 that"):
        go(model, optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_an_optimizer_that_settings_make_of_other_parameters_is_refused():
    make = lambda parameters: other_models()  # noqa: E731
    with pytest.raises(ArgumentError, match=r"^optimizer: .*none"):
        go(fields={"optimizer": make})
    for trainer in (ready(), ready("MarginalTrainer")):
        with pytest.raises(ArgumentError, match=r"^optimizer: .*none"):
            trainer.train(TrainConfig(max_epochs=1, optimizer=make))


def test_an_optimizer_of_a_part_of_the_model_trains_that_part_and_says_so():
    model = mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with pytest.warns(SbiIgniteWarning, match=r"^optimizer: 2 of the model's 4 trainable") as said:
        go(model, optimizer=optimizer)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert torch.equal(model[0].weight, mlp()[0].weight)
    assert not torch.equal(model[2].weight, mlp()[2].weight)


def test_an_optimizer_may_hold_what_the_loss_learns_besides():
    model, weight = mlp(), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([*model.parameters(), weight], lr=0.1)
    go(
        model,
        lambda model, batch: (-weight).exp() * loss(model, batch) + weight,
        optimizer=optimizer,
    )
    assert weight.item() != 0


def test_frozen_parameters_need_no_optimizer():
    model = mlp()
    model[0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(model, optimizer=torch.optim.SGD(model[2].parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: torch.optim.LBFGS(model.parameters()), r"got LBFGS, which needs a closure"),
        (lambda model: [other_models(), other_models()], r"got \[.*parameter groups"),
        (lambda model: torch.optim.Adam, r"got <class.*TrainConfig\(optimizer=\.\.\.\)"),
    ],
    ids=["LBFGS", "a list", "a class"],
)
def test_what_does_not_step_on_gradients_is_refused(make, message):
    model = mlp()
    with pytest.raises(ArgumentError, match=rf"(?s)^optimizer: .*{message}"):
        go(model, optimizer=make(model))


def test_trainers_refuse_an_optimizer_that_needs_a_closure():
    with pytest.raises(ArgumentError, match=r"got LBFGS, which needs a closure"):
        ready().train(TrainConfig(max_epochs=1, optimizer=torch.optim.LBFGS))


SCHEDULERS = {
    "after every epoch": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "plateau": lr_scheduler.ReduceLROnPlateau,
    "one after the other": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_of_another_optimizer_is_refused(make):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = make(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ArgumentError, match=r"^scheduler: .*of another one.*that you pass"):
        go(model, optimizer=optimizer, scheduler=other)
    with pytest.raises(ArgumentError, match=r"^scheduler: .*of another one.*Pass its optimizer"):
        go(model, scheduler=other)
    assert go(model, optimizer=optimizer, scheduler=make(optimizer)).epochs_trained == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda optimizer: SCHEDULERS["plateau"](other_models()), r"^scheduler: .*another one"),
        (lambda optimizer: None, r"^lr_schedule: expected a torch scheduler, got None"),
    ],
    ids=["another optimizer", "no scheduler"],
)
def test_a_schedule_that_settings_make_of_another_optimizer_is_refused(make, message):
    config = TrainConfig(max_epochs=1, lr_schedule=make)
    for train in (lambda: ready().train(config), lambda: go(fields={"lr_schedule": make})):
        with pytest.raises(ArgumentError, match=message):
            train()


# --- sparse gradients


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)

    def forward(self, words):
        return self.head(self.embedding(words))


WORDS = [(torch.tensor([0, 1, 4]), torch.ones(3, 1))]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"clip_max_norm=5: .*embedding\.weight.*sparse=False"),
        ({"optimizer": "sgd"}, r"clip_max_norm=5: .*embedding\.weight"),
        ({"clip_max_norm": None}, r"optimizer: .*sparse gradients.*got Adam for"),
        ({"clip_max_norm": None, "optimizer": "sgd"}, r"optimizer: .*got SGD for"),
        ({"clip_max_norm": None, "optimizer": torch.optim.RMSprop}, r"optimizer: .*got RMSprop"),
    ],
    ids=["clipping", "clipping for sgd", "adam", "fused sgd", "RMSprop"],
)
def test_sparse_gradients_that_nobody_takes_are_refused_at_the_first_batch(fields, message):
    with pytest.raises(ArgumentError, match=rf"^{message}"):
        go(Words(), train=WORDS, fields=fields)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.SGD])
def test_sparse_gradients_are_trained_with_an_optimizer_for_them(kind):
    model = Words()
    before = model.embedding.weight.detach().clone()
    fields = {"clip_max_norm": None, "optimizer": lambda parameters: kind(parameters, lr=0.1)}
    go(model, train=WORDS, fields=fields)
    changed = (model.embedding.weight != before).any(dim=1)
    assert changed.tolist() == [True, True, False, False, True]


# --- through trainers


@pytest.mark.parametrize("name", ["a dict", "a float", "a broadcast", "detached"])
def test_trainers_refuse_what_is_no_loss(name):
    """From an estimator whose `loss` somebody has overridden."""
    act, message = {
        "a dict": (lambda losses: {"loss": losses}, r"a dict of 'loss'"),
        "a float": (lambda losses: losses.mean().item(), r"a float"),
        "a broadcast": (lambda losses: losses[:, None] - losses, r"shape \(\d+, \d+\)"),
        "detached": (torch.Tensor.detach, r"no gradient of"),
    }[name]
    trainer = ready()

    class Changed(type(trainer)):
        def _get_losses(self, batch, loss_args):
            return act(super()._get_losses(batch, loss_args))

    trainer.__class__ = Changed
    with pytest.raises(ArgumentError, match=rf"^loss_fn: .*{message}"):
        trainer.train(TrainConfig(max_epochs=1), LossArgsNPE())


# --- schedulers and optimizers that cannot work here


def stepper(act=lambda optimizer: None, make=torch.optim.SGD, **arguments):
    """Return a model, and an optimizer and what `act` makes of it as arguments."""
    model = mlp()
    optimizer = make(model.parameters(), **{"lr": 0.01, **arguments})
    return {"model": model, "optimizer": optimizer, "scheduler": act(optimizer)}


def one_cycle(total_steps):
    return lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=total_steps, cycle_momentum=False)


def test_a_one_cycle_that_would_end_in_mid_training_is_refused_with_both_lengths():
    """The step after its last one would raise, here in the third of four epochs."""
    message = (
        r"^scheduler: .*at least 12 \(4 epochs of 3 batches, from .*max_epochs.*OneCycleLR of 7"
        r".*total_steps=12, or set max_epochs=2\."
    )
    given = stepper(one_cycle(7))
    before = [p.detach().clone() for p in given["model"].parameters()]
    with pytest.raises(ArgumentError, match=message):
        go(**given, fields={"max_epochs": 4})
    assert all(map(torch.equal, before, given["model"].parameters()))
    with pytest.raises(ArgumentError, match=message):
        go(fields={"max_epochs": 4, "lr_schedule": one_cycle(7)})
    with pytest.raises(ArgumentError, match=r"^scheduler: .*OneCycleLR of 3"):
        ready("NPE_C").train(TrainConfig(max_epochs=4, lr_schedule=one_cycle(3)))
    assert go(**stepper(one_cycle(12)), fields={"max_epochs": 4}).epochs_trained == 4


def test_without_max_epochs_a_training_ends_with_a_users_one_cycle():
    argument, field = stepper(one_cycle(11)), {"lr_schedule": one_cycle(11)}
    for config, arguments in (
        (TrainConfig(), {"loss_fn": loss, "train_loader": BATCHES, **argument}),
        (TrainConfig(**field), {"model": mlp(), "loss_fn": loss, "train_loader": BATCHES}),
    ):
        summary = run_training(config, **arguments)[1]
        assert (summary.epochs_trained, summary.stop_reason) == (3, "max_epochs")


def test_a_resumed_one_cycle_keeps_the_length_of_its_run_and_says_so(tmp_path):
    def leg(epochs, steps):
        where = str(tmp_path / "run")
        return go(**stepper(one_cycle(steps)), fields={"max_epochs": epochs}, checkpoint=where)

    leg(2, 9)
    differs = "total_steps differs: the run has 9, now it is 15"
    with pytest.raises(CheckpointMismatchError, match=differs):
        leg(5, 15)
    assert leg(3, 9).epochs_trained == 3


class Fails:
    """A scheduler that works for some steps."""

    def __init__(self, steps, error):
        self.left, self.error = steps, error

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise self.error


def test_a_scheduler_that_fails_in_a_step_is_named_with_the_cause_and_the_best_weights_stay():
    model, cause = mlp(), ValueError("tried to step 3 times")
    reference = mlp()
    go(reference, fields={"max_epochs": 2})
    message = (
        r"^scheduler: .*after every epoch.*Fails\.step\(\) failed in epoch 3, after iteration 9 "
        r"\(ValueError: tried to step 3 times\)\. The best weights so far"
    )
    with pytest.raises(ArgumentError, match=message) as raised:
        go(
            model,
            fields={"max_epochs": 5, "lr_schedule": lambda optimizer: Fails(2, cause)},
        )
    assert raised.value.__cause__ is cause
    go(reference := mlp(), fields={"max_epochs": 3})
    assert all(map(torch.equal, reference.parameters(), model.parameters()))


def test_errors_of_a_users_own_kind_pass_through_a_step_unchanged():
    class Pruned(Exception):  # noqa: N818 # as optuna names it
        """What a user's search for hyperparameters catches."""

    with pytest.raises(Pruned):
        go(fields={"lr_schedule": lambda optimizer: Fails(0, Pruned())})


def test_a_sequence_with_a_one_cycle_inside_fails_in_our_words():
    def sequence(optimizer):
        first = lr_scheduler.ConstantLR(optimizer, total_iters=1)
        return lr_scheduler.SequentialLR(optimizer, [first, one_cycle(2)(optimizer)], [1])

    with pytest.raises(ArgumentError, match=r"^scheduler: .*SequentialLR\.step\(\).*ValueError"):
        go(fields={"lr_schedule": sequence, "max_epochs": 6})


def test_a_plateau_that_watches_for_the_highest_loss_is_refused():
    def plateau(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")

    for arguments in (stepper(plateau), {"fields": {"lr_schedule": plateau}}):
        with pytest.raises(ArgumentError, match=r'^scheduler: .*mode="min".*got mode="max".*falls'):
            go(**arguments)


def test_a_scheduler_whose_step_needs_an_argument_is_refused_with_its_signature():
    class Timm:
        def step(self, epoch, metric=None):
            raise AssertionError("it was stepped")

    with pytest.raises(ArgumentError, match=r"^scheduler: .*no argument.*Timm.*\(epoch, metric"):
        go(**stepper(lambda optimizer: Timm()))
    with pytest.raises(ArgumentError, match=r"^lr_schedule: .*no argument.*'epoch'"):
        go(fields={"lr_schedule": lambda optimizer: Timm()})


def test_callables_that_make_nothing_are_named_with_the_cause():
    def no_length(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 0.1)

    with pytest.raises(ArgumentError, match=r"^lr_schedule: .*for SGD, .*no_length failed.*steps"):
        go(fields={"lr_schedule": no_length, "optimizer": "sgd"})
    with pytest.raises(ArgumentError, match=r"^optimizer: .*4 parameters.*Muon failed") as raised:
        go(fields={"optimizer": torch.optim.Muon})
    assert isinstance(raised.value.__cause__, ValueError)


def test_an_optimizer_for_sparse_gradients_is_refused_for_dense_ones():
    """With an embedding that has sparse ones beside dense ones, too."""
    embedding = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Flatten(), nn.Linear(2, 1))
    batches = [(torch.tensor([[0], [1], [2]]), torch.zeros(3, 1))]
    for model, train, named in ((mlp(), BATCHES, "0.weight, 0.bias"), (embedding, batches, "2.w")):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SparseAdam(list(model.parameters()))
        message = rf"^optimizer: .*dense gradients.*SparseAdam for {named}.*Adagrad"
        with pytest.raises(ArgumentError, match=message):
            go(model, train=train, optimizer=optimizer, fields={"clip_max_norm": None})
        assert all(map(torch.equal, before, model.parameters()))


def test_an_optimizer_that_maximizes_the_loss_is_refused():
    with pytest.raises(ArgumentError, match=r"^optimizer: .*lowers the loss.*SGD with maximize"):
        go(**stepper(maximize=True))
    with pytest.raises(ArgumentError, match=r"^optimizer: .*lowers the loss.*Adam with maximize"):
        go(**stepper(make=torch.optim.Adam, maximize=True))


def test_an_optimizer_may_maximize_what_is_not_in_the_model():
    """A multiplier of a constraint rises while the model's own parameters fall."""
    model, multiplier = mlp(), torch.ones((), requires_grad=True)
    groups = [{"params": [*model.parameters()]}, {"params": [multiplier], "maximize": True}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    go(model, lambda m, batch: multiplier * loss(m, batch), optimizer=optimizer)
    assert multiplier.item() > 1


def test_an_optimizer_that_fails_in_a_step_is_named_with_the_cause():
    """A capturable Adam needs a GPU, which torch notices at the first step only."""
    given = stepper(make=torch.optim.Adam, capturable=True)
    message = r"^optimizer: .*on cpu, Adam\.step\(\) failed in epoch 1, iteration 1 \(\w+Error: "
    with pytest.raises(ArgumentError, match=message) as raised:
        go(**given)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("wrong", [None, (1,), "detached"])
def test_a_loss_that_goes_wrong_later_is_named_as_at_the_first_batch(wrong):
    calls = []

    def later(model, batch):
        calls.append(1)
        value = loss(model, batch)
        if len(calls) < 2:
            return value
        return value.detach() if wrong == "detached" else wrong

    with pytest.raises(ArgumentError, match="loss_fn: expected losses of shape"):
        go(loss_fn=later, compile="off")


def test_a_validate_that_is_no_method_is_refused():
    class Loss:
        validate = True

        def __call__(self, model, batch):
            return loss(model, batch)

    with pytest.raises(ArgumentError, match=r"loss_fn\.validate: expected a method .* got True"):
        go(loss_fn=Loss())


def test_a_rule_that_does_not_take_the_state_is_refused():
    with pytest.raises(ArgumentError, match=r"EarlyStopping\.when\(rule\): expected a callable"):
        go(early_stopping=EarlyStopping.when(lambda: True))
