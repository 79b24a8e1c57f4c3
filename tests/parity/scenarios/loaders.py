"""Scenarios of data loaders and their settings."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from .problem import SHORT, draw, make, small, small_flow_matching, small_npe
from .registry import Notes, scenario


def halving(rows: list[Any]) -> list[Tensor]:
    """Collate, and keep half of the batch."""
    return [part[: len(rows) // 2] for part in data.default_collate(rows)]


def jittering(rows: list[Any]) -> list[Tensor]:
    """Collate, and add noise from each of the three global generators."""
    theta, x, masks = data.default_collate(rows)
    noise = torch.randn_like(x) * np.random.rand() * random.random()
    return [theta, x + 0.1 * noise, masks]


@scenario(patched=True)
def collate_fn(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": halving})
    return trainer


@scenario(patched=True)
def collate_fn_that_draws(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": jittering})
    return trainer


@scenario()
def fmpe_collate_fn_that_draws(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": jittering})
    return trainer


@scenario()
def workers(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"num_workers": 2})
    return trainer


@scenario()
def workers_that_persist_and_draw(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"num_workers": 2, "persistent_workers": True, "collate_fn": jittering}
    trainer.train(**SHORT, dataloader_kwargs=loader)
    return trainer


@scenario()
def keep_the_last_batch(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"drop_last": False})
    return trainer


@scenario()
def batch_size_through_the_loader(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"batch_size": 15})
    return trainer


@scenario()
def generator_of_the_loader(inference: ModuleType, notes: Notes):
    trainer, generator = small_npe(inference), torch.Generator().manual_seed(3)
    trainer.train(**SHORT, dataloader_kwargs={"generator": generator})
    notes["generator"] = generator.get_state()
    return trainer


@scenario()
def sampler_of_ones_own(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    sampler = data.WeightedRandomSampler(torch.arange(200.0), 100)
    trainer.train(**SHORT, dataloader_kwargs={"sampler": sampler})
    return trainer


@scenario()
def pinned_memory_and_other_loader_settings(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"timeout": 0, "worker_init_fn": None, "in_order": True}
    trainer.train(**SHORT, dataloader_kwargs=loader)
    return trainer


@scenario()
def loaders_called_for_by_the_user(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    train_loader, val_loader = trainer.get_dataloaders(0, 40, 0.2)
    for name, loader in {"train": train_loader, "val": val_loader}.items():
        notes[name] = {
            "length": len(loader),
            "batch size": loader.batch_size,
            "rows of the data set": len(loader.dataset),
            "a row": list(loader.dataset[3]),
            "is a DataLoader": isinstance(loader, data.DataLoader),
            "drops the last": loader.drop_last,
            "workers": loader.num_workers,
            "sampler's length": len(loader.sampler),
            "first pass": [list(batch) for batch in loader],
            "second pass": [list(batch) for batch in loader],
            "kinds": sorted({type(batch).__name__ for batch in loader}),
        }
    notes["split"] = [trainer.train_indices, trainer.val_indices]
    trainer.train(**SHORT)
    return trainer


class Rows:
    """Batches of fixed rows: iterable, with a length and a batch size, and nothing else."""

    def __init__(self, tensors: tuple[Tensor, ...], first: int, last: int, batch_size: int) -> None:
        self.tensors, self.first, self.last = tensors, first, last
        self.batch_size = batch_size

    def __len__(self) -> int:
        return (self.last - self.first) // self.batch_size

    def __iter__(self) -> Any:
        for start in range(self.first, self.last, self.batch_size):
            yield tuple(t[start : start + self.batch_size] for t in self.tensors)


@scenario()
def loaders_that_are_no_dataloaders(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, starting_round: int = 0, *args: Any, **kwargs: Any) -> Any:
            tensors = self.get_simulations(starting_round)
            self.train_indices, self.val_indices = torch.arange(160), torch.arange(160, 200)
            return Rows(tensors, 0, 160, 40), Rows(tensors, 160, 200, 20)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer
