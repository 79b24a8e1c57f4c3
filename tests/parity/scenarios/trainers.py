"""Scenarios with trainers as users subclass and change them."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import sbi.inference
import torch
from sbi.inference.trainers._contracts import TrainConfig as SbiTrainConfig
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_flow_nn
from torch import Tensor, nn
from torch.utils import data

from tests.parity.observe import Recorder

from .loaders import jittering
from .problem import SHORT, draw, make, require, small, small_npe, two_rounds
from .registry import Notes, scenario


@scenario(patched=True)
def validate_epoch_replaced_on_the_instance(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    losses = iter([10.0, 9.0, 8.0, 8.5, 7.0, 7.5])
    trainer._validate_epoch = lambda *_a, **_kw: next(losses)
    trainer.train(training_batch_size=50, max_num_epochs=5)
    return trainer


@scenario()
def parts_replaced_on_the_instance(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    shown: list[Any] = []
    trainer._maybe_show_progress = lambda show, epoch: shown.append([show, epoch])
    trainer._converged = lambda epoch, stop_after_epochs: epoch >= 3
    original = trainer._get_losses
    trainer._get_losses = lambda batch, loss_args: 2 * original(batch=batch, loss_args=loss_args)
    trainer.train(training_batch_size=50)
    notes["shown"] = shown
    return trainer


@scenario(patched=True)
def train_epoch_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            total = 0.0
            for batch in train_loader:
                self.optimizer.zero_grad()
                losses = self._get_losses(batch=batch, loss_args=loss_args)
                (losses.mean() + 0.01 * losses.var()).backward()
                self.optimizer.step()
                total += losses.sum().item()
            return total / (len(train_loader) * train_loader.batch_size)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def epochs_that_call_super(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            loss = super()._train_epoch(train_loader, clip_max_norm, loss_args)
            seen.append([self.epoch, loss, self._neural_net.training])
            return loss + 1

        def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
            loss = super()._validate_epoch(val_loader, loss_args)
            seen.append([self.epoch, loss, self._neural_net.training])
            return round(loss, 1)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(training_batch_size=50, stop_after_epochs=2, max_num_epochs=6)
    return trainer


@scenario()
def fmpe_epochs_that_call_super(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.FMPE):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            loss = super()._train_epoch(train_loader, clip_max_norm, loss_args)
            seen.append([loss, loss_args.times])
            return loss

        def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
            loss = super()._validate_epoch(val_loader, loss_args)
            seen.append([loss, loss_args.times])
            return loss

    trainer = make(Mine, vf_estimator=posterior_flow_nn("mlp", hidden_features=16))
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


@scenario()
def converged_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NRE_B):
        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            asked.append([epoch, stop_after_epochs, self._val_loss])
            return super()._converged(epoch, stop_after_epochs) or epoch >= 4

    notes["asked"] = asked = []
    trainer = make(Mine, classifier=classifier_nn("mlp", hidden_features=12))
    trainer.append_simulations(*draw()).train(training_batch_size=50, stop_after_epochs=7)
    require(trainer.epoch == 4)
    return trainer


@scenario()
def losses_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _get_losses(self, batch: Any, loss_args: Any) -> Tensor:
            losses = super()._get_losses(batch=batch, loss_args=loss_args)
            return losses + 0.1 * torch.rand_like(losses)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loss_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NLE_A):
        def _loss(self, theta: Tensor, x: Tensor) -> Tensor:
            return super()._loss(theta, x) + 1e-3 * theta.square().sum(dim=1)

    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(Mine, density_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loss_of_npe_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _loss(self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kinds.append(sorted(kwargs))
            return super()._loss(theta, x, *args, **kwargs) * 1.1

    notes["kinds"] = kinds = []
    return two_rounds(make(Mine, density_estimator=small()))


@scenario()
def loss_of_nre_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.BNRE):
        def _loss(self, theta: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
            kinds.append(sorted(kwargs.items()))
            return super()._loss(theta, x, **kwargs) * 1.1

    notes["kinds"] = kinds = []
    trainer = make(Mine, classifier=classifier_nn("mlp", hidden_features=12))
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


@scenario()
def summaries_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _summarize_epoch(
            self, train_loss: float, val_loss: float, epoch_start_time: float, kwargs: Any
        ) -> None:
            super()._summarize_epoch(train_loss, val_loss, epoch_start_time, kwargs)
            self._summary.setdefault("gap", []).append(val_loss - train_loss)

        def _summarize(self, round_: int) -> None:
            super()._summarize(round_)
            self._tracker.log_metric("gap", self._summary["gap"][-1], round_)

        def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
            print(f"{epoch} of {max_num_epochs} epochs")

        @staticmethod
        def _describe_round(round_: int, summary: dict[str, list[Any]]) -> str:
            return f"round {round_}: {summary['gap'][-1]}"

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT, show_train_summary=True)
    return trainer


@scenario(patched=True)
def loaders_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            given.append([len(args), sorted(kwargs)])
            train_loader, val_loader = super().get_dataloaders(*args, **kwargs)
            weights = torch.zeros(len(train_loader.dataset))
            weights[self.train_indices] = torch.rand(len(self.train_indices))
            sampler = data.WeightedRandomSampler(weights.tolist(), 90)
            return data.DataLoader(train_loader.dataset, 30, sampler=sampler), val_loader

    notes["given"] = given = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_rebuilt_from_those_of_super(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            loaders = super().get_dataloaders(*args, **kwargs)
            kinds.append([isinstance(loader, data.DataLoader) for loader in loaders])
            return [
                data.DataLoader(
                    loader.dataset,
                    batch_size=loader.batch_size,
                    sampler=loader.sampler,
                    drop_last=loader.drop_last,
                    num_workers=loader.num_workers,
                    collate_fn=jittering,
                )
                for loader in loaders
            ]

    notes["kinds"] = kinds = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_looked_into_by_an_epoch(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            seen.append([len(train_loader.dataset), len(train_loader.sampler)])
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_without_super(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, starting_round: int = 0, *args: Any, **kwargs: Any) -> Any:
            rows = data.TensorDataset(*self.get_simulations(starting_round))
            self.train_indices, self.val_indices = torch.arange(160), torch.arange(160, 200)
            parts = [data.Subset(rows, range(160)), data.Subset(rows, range(160, 200))]
            return [data.DataLoader(p, batch_size=40, shuffle=True) for p in parts]

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def train_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def train(self, *args: Any, patient: bool = False, **kwargs: Any) -> nn.Module:
            kwargs.setdefault("stop_after_epochs", 9 if patient else 2)
            return super().train(*args, **kwargs)

        def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            loops.append([len(args), sorted(kwargs)])
            return super()._run_training_loop(*args, **kwargs)

    notes["loops"] = loops = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw(120))
    trainer.train(patient=True, **SHORT)
    trainer.train(5, **SHORT, resume_training=True)
    return trainer


@scenario()
def network_built_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _initialize_neural_network(self, retrain_from_scratch: bool, start_idx: int) -> None:
            super()._initialize_neural_network(retrain_from_scratch, start_idx)
            for parameter in self._neural_net.parameters():
                parameter.data.mul_(0.9)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def method_replaced_on_the_class(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    seen: list[float] = []

    def validate(self: Any, val_loader: Any, loss_args: Any) -> float:
        seen.append(float(len(val_loader)))
        return 5.0 - len(seen)

    trainer._validate_epoch = MethodType(validate, trainer)
    trainer.train(**SHORT)
    notes["seen"] = seen
    return trainer


def timed(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Wrap a method so that it keeps the name and the module of the original."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        return method(self, *args, **kwargs)

    return wrapper


@scenario(patched=True)
def methods_wrapped_under_their_own_name(inference: ModuleType, notes: Notes):
    notes["calls"] = calls = []

    class Mine(inference.NPE_C):
        _train_epoch = timed(inference.NPE_C._train_epoch, calls)
        _validate_epoch = timed(inference.NPE_C._validate_epoch, calls)
        _report_convergence_at_end = timed(inference.NPE_C._report_convergence_at_end, calls)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def losses_wrapped_under_their_own_name(inference: ModuleType, notes: Notes):
    notes["calls"] = calls = []

    class Mine(inference.NPE_C):
        _get_losses = timed(inference.NPE_C._get_losses, calls)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario(patched=True)
def train_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NLE_A):
        def train(self, epochs: int = 3) -> nn.Module:
            self._round = max(self._data_round_index)
            loaders = self.get_dataloaders(0, 50, 0.2, False, dataloader_kwargs=None)
            self._initialize_neural_network(False, 0)
            config = SbiTrainConfig(
                training_batch_size=50,
                learning_rate=1e-3,
                validation_fraction=0.2,
                stop_after_epochs=20,
                max_num_epochs=epochs,
                resume_training=False,
                retrain_from_scratch=False,
                show_train_summary=True,
                clip_max_norm=None,
            )
            return self._run_training_loop(*loaders, config)

    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(Mine, density_estimator=builder).append_simulations(*draw())
    trainer.train(epochs=2)
    return trainer


@scenario()
def rate_lowered_from_a_hook(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _summarize_epoch(self, *args: Any, **kwargs: Any) -> None:
            super()._summarize_epoch(*args, **kwargs)
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.5

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def optimizer_replaced_in_an_overridden_epoch(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
            if self.epoch == 0:
                self.optimizer = torch.optim.SGD(self._neural_net.parameters(), lr=1e-3)
            return super()._train_epoch(*args, **kwargs)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def validation_loss_that_is_nan(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    losses = iter([3.0, float("nan"), 2.0, float("nan"), float("nan"), 1.0])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=50, stop_after_epochs=2)
    require(trainer.epoch == 5)
    return trainer


class DefinedBeforeThePatch(sbi.inference.NPE_C):
    """A user's subclass of sbi's own class, which exists before `patch_sbi()` is called."""

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        return super()._converged(epoch, stop_after_epochs) or epoch >= 3


@scenario(patched=True, renamed=False)
def subclass_defined_before_the_patch(inference: ModuleType, notes: Notes):
    trainer = make(DefinedBeforeThePatch, density_estimator=small())
    trainer.append_simulations(*draw()).train(training_batch_size=50)
    require(trainer.epoch == 3)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded._tracker = Recorder()
    loaded.train(training_batch_size=50, resume_training=True)
    return trainer, loaded


@scenario(patched=True, renamed=False)
def trainer_on_sbis_abstract_base(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C.__mro__[1]):
        def _log_prob_proposal_posterior(self, *args: Any) -> Tensor:
            raise NotImplementedError

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def in_a_thread(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    thread = threading.Thread(target=trainer.train, kwargs=SHORT)
    thread.start()
    thread.join()
    return trainer
