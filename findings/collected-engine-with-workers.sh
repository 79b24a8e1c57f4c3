#!/usr/bin/env bash
# pytorch-ignite 0.5.5 with torch 2.13.0: when an Engine that has run over a DataLoader with
# persistent workers is garbage, collecting it stops the process for 5 seconds per worker, if one of
# its handlers refers to the engine, as handlers written below `@trainer.on(...)` do. Seen, with two
# workers:
#
#     handler without the engine: training and gc.collect() took 0.6 s, queues open when workers are
#     told: True
#     handler with the engine: training and gc.collect() took 10.6 s, queues open when workers are
#     told: False
#
# Such an engine is a cycle of references, which only the garbage collector can free, together with
# the loader and its iterator. The collector runs the finalizers of multiprocessing's queues before
# the iterator's __del__, which then writes its "end" into queues that deliver nothing any more, and
# waits for each worker in turn. A loop over many trainings meets that at moments of Python's own
# choosing. It helps to keep the iterator out of the cycle, or to call its `_shutdown_workers()` when
# training is over. Exits 0 if that still happens, 1 if not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy pytorch-ignite==0.5.5

cat > collected.py <<'END'
import gc
import sys
import time

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers

are_open: list[bool] = []
shut_down = Workers._shutdown_workers


def noted(self: Workers) -> None:
    if not self._shutdown:
        are_open.extend(queue._close.still_active() for queue in self._index_queues)
    shut_down(self)


def train(refers_to_engine: bool) -> None:
    data = TensorDataset(torch.zeros(40, 2))
    loader = DataLoader(data, batch_size=10, num_workers=2, persistent_workers=True)
    trainer = Engine(lambda engine, batch: 0.0)

    if refers_to_engine:

        @trainer.on(Events.EPOCH_COMPLETED)
        def note() -> None:
            trainer.state.metrics["epochs"] = trainer.state.epoch

    else:

        @trainer.on(Events.EPOCH_COMPLETED)
        def note(engine: Engine) -> None:
            engine.state.metrics["epochs"] = engine.state.epoch

    trainer.run(loader, max_epochs=2)


if __name__ == "__main__":
    Workers._shutdown_workers = noted
    gc.collect()
    found = {}
    for refers_to_engine in (False, True):
        are_open.clear()
        start = time.perf_counter()
        train(refers_to_engine)
        gc.collect()
        found[refers_to_engine] = all(are_open) and bool(are_open)
        print(
            f"handler {'with' if refers_to_engine else 'without'} the engine: training and "
            f"gc.collect() took {time.perf_counter() - start:.1f} s, queues open when workers are "
            f"told: {found[refers_to_engine]}"
        )
    if found != {False: True, True: False}:
        sys.exit("changed: the workers of a collected engine are told to end")
END
venv/bin/python collected.py
