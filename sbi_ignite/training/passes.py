"""Check that each pass over the batches yields as many as their length promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ignite.engine import Engine, Events

from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import DataError


class Passes:
    """Batches for ignite's engines that refuse a pass of a length other than promised.

    ignite counts an epoch in batches: it restarts a loader that ends early in mid-epoch, leaves an
    epoch empty if there is no batch, and keeps batches beyond the length for the next epoch or, in
    validation, never uses them.

    All other attributes, such as `rows` or a DataLoader's `dataset`, are those of the batches or
    of the user's loader behind them.

    Args:
        batches: The batches.
        guard: Wraps what is iterated over, see `StopOnSignals.guard`.
        epoch: Returns the number of the epoch that a pass begins, from 0, which batches are told;
            None tells them nothing.

    Attributes:
        num_batches: Batches in a pass.

    Example:
        >>> from sbi_ignite.data.foreign import ForeignBatches
        >>> list(Passes(ForeignBatches([1, 2])))
        [1, 2]
    """

    def __init__(
        self,
        batches: Batches,
        guard: Callable[[Any], Iterable[Any]] = lambda batches: batches,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self.batches, self.guard, self._epoch = batches, guard, epoch
        self.num_batches = len(batches)
        self._done = 0
        self._pass: _Pass | None = None

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        if self._epoch is not None:
            self.batches.set_epoch(self._epoch())
        self._pass = _Pass(self, self._done)
        self._done = 0
        return self._pass

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # not there yet, while this object is copied
            raise AttributeError(name)
        if hasattr(self.batches, name):
            return getattr(self.batches, name)
        return getattr(getattr(self.batches, "loader", self.batches), name)

    def continue_after(self, num_batches: int) -> None:
        """Expect the next pass to begin after `num_batches` batches, as a resumed one does."""
        self._done = num_batches

    def attach(self, engine: Engine) -> None:
        """Check at the end of every epoch; attach it before anything that relies on that epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.conclude)

    def conclude(self) -> None:
        """Run a pass that has handed out all its batches to its end, as a `for` loop does.

        Raises:
            DataError: If there is another batch.
        """
        if self._pass is not None and self._pass.handed_out == self.num_batches:
            next(self._pass, None)

    def close(self) -> None:
        """Let go of the latest pass, which ends its workers; afterwards, passes begin anew."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None


class _Pass:
    """One pass over a loader.

    Args:
        passes: The batches, with the number that the pass must yield.
        done: Batches of this pass that were handed out earlier.
    """

    def __init__(self, passes: Passes, done: int) -> None:
        self._of = passes
        self._batches: Iterator[Any] = iter(passes.guard(passes.batches))
        self.handed_out = done
        self._ended = False

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        try:
            batch = next(self._batches)
        except StopIteration:
            self._ended = True
            if self.handed_out < self._of.num_batches:
                raise self._too_few() from None
            raise
        if self.handed_out == self._of.num_batches:
            raise self._too_many()
        self.handed_out += 1
        return batch

    def close(self) -> None:
        """End, also if somebody keeps this object."""
        self._ended, self._batches = True, iter(())

    def _too_few(self) -> DataError:
        got = self.handed_out or "none"
        again = (
            " A loader is iterated once an epoch and must begin anew each time, which an iterator "
            "or a generator that is used up does not."
        )
        return DataError(
            f"{self._expected()}, got {got} in one pass.{'' if self.handed_out else again} Let "
            "len() give the batches of a pass, or train on a list of batches."
        )

    def _too_many(self) -> DataError:
        return DataError(
            f"{self._expected()}, got more in one pass. Let len() give the batches of a pass, and "
            "a stream without an end stop there. With several workers, an IterableDataset must "
            "share out its rows among them (torch.utils.data.get_worker_info), in whole batches."
        )

    def _expected(self) -> str:
        of = self._of
        return (
            f"{of.batches.name}: expected as many batches as its len() promises ({of.num_batches})"
        )
