"""An epoch is what a loader promises: as many batches as its length, each with rows."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sbi_ignite import DataError, TrainConfig, run_training
from sbi_ignite.data.in_memory import OrderedBatches, SbiOrderBatches, ShuffledBatches

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
BATCHES = [(X[i : i + 6],) for i in range(0, 24, 6)]
EMPTY = (X[:0],)


def loss(model, batch):
    return (model(batch[0]) - 1).square().mean(dim=1)


def mean_loss(model, batch):
    return loss(model, batch).mean()


class Passes:
    """A loader whose passes have lengths of their own, whatever its len() says.

    Args:
        promised: What len() says.
        lengths: Batches of each pass; of all that follow, those of the last.
    """

    def __init__(self, promised, *lengths):
        self.promised, self.lengths, self.passes = promised, lengths, 0

    def __len__(self):
        return self.promised

    def __iter__(self):
        length = self.lengths[min(self.passes, len(self.lengths) - 1)]
        self.passes += 1
        return itertools.islice(itertools.cycle(BATCHES), length)


class OnePass:
    """A generator with a length: it can be iterated once."""

    def __init__(self):
        self.batches = iter(BATCHES)

    def __len__(self):
        return len(BATCHES)

    def __iter__(self):
        return self.batches


class Rows(IterableDataset):
    """The rows as a stream, which may claim another length, be used up, or know its workers."""

    def __init__(self, claimed=24, once=False, shares=False):
        self.claimed, self.shares = claimed, shares
        self.once = iter(list(zip(X))) if once else None

    def __len__(self):
        return self.claimed

    def __iter__(self):
        if self.once is not None:
            return self.once
        worker = get_worker_info()
        if worker is None or not self.shares:
            return iter(list(zip(X)))
        return iter(list(zip(X[worker.id :: worker.num_workers])))


def streamed(batch_size=6, num_workers=0, **kwargs):
    return DataLoader(Rows(**kwargs), batch_size=batch_size, num_workers=num_workers)


def go(train, validation=None, loss_fn=loss, epochs=3, **fields):
    torch.manual_seed(0)
    config = TrainConfig(max_epochs=epochs, **fields)
    return run_training(config, nn.Linear(2, 1), loss_fn, train, validation)[1]


TOO_FEW = {
    "none at all": lambda: Passes(4, 0),
    "one less": lambda: Passes(4, 3),
    "less from the second pass on": lambda: Passes(4, 4, 2),
    "used up": OnePass,
    "a used up stream": lambda: streamed(once=True),
    "a stream that claims more": lambda: streamed(claimed=30),
}
TOO_MANY = {
    "one more": lambda: Passes(4, 5),
    "without an end": lambda: Passes(4, 10**9),
    "more in the second pass": lambda: Passes(4, 4, 5),
}


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("name", TOO_FEW)
@pytest.mark.parametrize("where", ["train_loader", "val_loader"])
def test_a_pass_of_fewer_batches_than_promised_is_an_error_that_names_the_loader(
    where, name, compat
):
    loaders = {"train_loader": BATCHES, "val_loader": BATCHES, where: TOO_FEW[name]()}
    with pytest.raises(DataError, match=rf"^{where} \(\w+\): .*len\(\) promises \([45]\), got"):
        go(*loaders.values(), sbi_compat=compat)


@pytest.mark.parametrize("name", TOO_MANY)
@pytest.mark.parametrize("where", ["train_loader", "val_loader"])
def test_a_pass_of_more_batches_than_promised_is_an_error_that_names_the_loader(where, name):
    loaders = {"train_loader": BATCHES, "val_loader": BATCHES, where: TOO_MANY[name]()}
    with pytest.raises(DataError, match=rf"^{where} \(\w+\): .*len\(\) promises \(4\), got more"):
        go(*loaders.values())


def test_more_batches_than_promised_are_noticed_after_the_first_epoch():
    with pytest.raises(DataError, match=r"train_loader"):
        go(Passes(4, 5), epochs=1)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
def test_workers_that_all_yield_every_row_are_noticed():
    """The classical mistake with several workers: every row twice, and torch only warns."""
    with pytest.raises(DataError, match=r"got more.*get_worker_info"):
        go(streamed(num_workers=2))
    assert go(streamed(num_workers=2, shares=True), epochs=2).epochs_trained == 2


@pytest.mark.parametrize("ends", ["as planned", "in the middle", "with an error"])
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_are_told_to_end_when_the_loader_is_gone(persistent, ends, monkeypatch):
    """Python's garbage collector may close their queues first: torch then waits, and kills them."""

    def spoilt(model, batch):
        raise ValueError("the first loss")

    class Early:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), engine.terminate)

    are_open = []
    shut_down = _MultiProcessingDataLoaderIter._shutdown_workers

    def noted(iterator):
        if not iterator._shutdown:
            are_open.extend(queue._close.still_active() for queue in iterator._index_queues)
        shut_down(iterator)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", noted)
    loader = DataLoader(
        TensorDataset(X), batch_size=6, num_workers=1, persistent_workers=persistent
    )
    loss_fn = spoilt if ends == "with an error" else loss
    callbacks = [Early()] if ends == "in the middle" else []
    with contextlib.suppress(ValueError):
        run_training(
            TrainConfig(max_epochs=2), nn.Linear(2, 1), loss_fn, loader, callbacks=callbacks
        )
    del loader
    gc.collect()
    assert are_open
    assert all(are_open)


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("loss_fn", [loss, mean_loss])
@pytest.mark.parametrize("where", ["train_loader", "val_loader"])
def test_a_batch_without_rows_is_an_error_that_names_the_loader(where, loss_fn, bad):
    """Its mean is NaN, its sum is a perfect zero."""
    loader = [*BATCHES[:bad], EMPTY, *BATCHES[bad:]]
    loaders = {"train_loader": BATCHES, "val_loader": BATCHES, where: loader}
    with pytest.raises(DataError, match=rf"^{where} \(\w+\): .*without rows in epoch 1"):
        go(*loaders.values(), loss_fn=loss_fn)


def test_an_epoch_that_a_handler_ends_before_its_first_batch_has_no_loss():
    """Nothing was seen, which is no loss of zero; the next epoch is a whole one."""

    class Skipping:
        def attach(self, engine):
            engine.add_event_handler(Events.GET_BATCH_STARTED, self.skip)

        def skip(self, engine):
            if engine.state.epoch == 1:
                engine.terminate_epoch()

    _, summary = run_training(
        TrainConfig(max_epochs=2), nn.Linear(2, 1), loss, BATCHES, callbacks=[Skipping()]
    )
    assert math.isnan(summary.training_loss[0])
    assert summary.training_loss[1] > 0
    assert summary.best_epoch == 2


LOADERS = {
    "a list": lambda: BATCHES,
    "a DataLoader": lambda: DataLoader(TensorDataset(X), batch_size=6, shuffle=True),
    "a last batch that is smaller": lambda: DataLoader(TensorDataset(X), batch_size=7),
    "workers": lambda: DataLoader(TensorDataset(X), batch_size=6, num_workers=2),
    "workers that persist": lambda: DataLoader(
        TensorDataset(X), batch_size=6, num_workers=1, persistent_workers=True
    ),
    "a stream": streamed,
    "batches in memory": lambda: ShuffledBatches((X,), torch.arange(24), 7, seed=0),
    "batches in order": lambda: OrderedBatches((X,), torch.arange(24), 7),
    "sbi's order": lambda: SbiOrderBatches((X,), torch.arange(24), 7),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_that_keeps_its_promise_is_iterated_as_in_a_loop_of_ones_own(name):
    """Once an epoch, to its end, with the same batches in the same order."""
    seen = []

    class Watch:
        def attach(self, engine):
            keep = lambda: seen.append(engine.state.batch[0])  # noqa: E731
            engine.add_event_handler(Events.ITERATION_COMPLETED, keep)

    torch.manual_seed(1)
    expected = [batch[0] for loader in (LOADERS[name](),) for _ in range(3) for batch in loader]
    model = nn.Linear(2, 1)
    torch.manual_seed(1)
    _, summary = run_training(
        TrainConfig(max_epochs=3),
        model,
        loss,
        LOADERS[name](),
        LOADERS[name](),
        callbacks=[Watch()],
    )
    assert len(seen) == len(expected)
    assert all(map(torch.equal, seen, expected))
    assert summary.epochs_trained == 3


def test_a_loader_is_left_at_its_end_after_every_epoch():
    """What follows the last `yield` of a generator runs, before validation and after the last."""
    told = []

    class Telling:
        def __len__(self):
            return 4

        def __iter__(self):
            yield from BATCHES
            told.append("end of a pass")

    class Watch:
        def on_epoch_end(self, state):
            told.append("end of an epoch")

    run_training(TrainConfig(max_epochs=2), nn.Linear(2, 1), loss, Telling(), callbacks=[Watch()])
    assert told == ["end of a pass", "end of an epoch"] * 2


def test_handlers_find_the_loader_where_ignite_has_it():
    """`engine.state.dataloader` has the attributes of the loader that was passed."""
    loader = DataLoader(TensorDataset(X), batch_size=6)
    seen = []

    class Watch:
        def attach(self, engine):
            look = lambda: seen.append(engine.state.dataloader)  # noqa: E731
            engine.add_event_handler(Events.EPOCH_COMPLETED, look)

    run_training(TrainConfig(max_epochs=1), nn.Linear(2, 1), loss, loader, callbacks=[Watch()])
    (found,) = seen
    assert (found.batch_size, len(found), found.dataset) == (6, 4, loader.dataset)
    assert len(list(found)) == 4
