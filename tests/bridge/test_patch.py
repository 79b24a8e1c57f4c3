"""Door (b): patch_sbi() acts at once on everything, and its undo leaves nothing behind."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Iterator

import pytest
import sbi
import sbi.inference
import torch
from sbi.inference import NPE as IMPORTED_BEFORE
from sbi.inference.trainers.base import NeuralInference

import sbi_ignite
from sbi_ignite import TrainConfig, patch_sbi, unpatch_sbi
from sbi_ignite.bridge.patch import is_patched
from tests.small import METHODS, SBI_WARNS, ready, same, train

pytestmark = SBI_WARNS


class OfAUser(sbi.inference.NPE_C):
    """A user's subclass that exists before any patch."""

    def train(self, *args, **kwargs):
        self.before_train = True
        return super().train(*args, **kwargs)


def classes() -> list[type]:
    """Return all of sbi's trainer classes, and those of their bases that are sbi's."""
    found = {OfAUser}
    for name in (name for name in (*METHODS, "NPE_PFN") if hasattr(sbi.inference, name)):
        found.update(getattr(sbi.inference, name).__mro__)
    # Python 3.12 itself adds to abc.ABC, when somebody asks for its annotations.
    return sorted(
        (cls for cls in found if cls is OfAUser or cls.__module__.startswith("sbi.")),
        key=lambda cls: cls.__qualname__,
    )


def picture() -> dict[str, object]:
    """Return everything that a patch may touch."""
    modules = {m for m in sys.modules if m == "sbi" or m.startswith("sbi.")}
    namespaces = {
        name: dict(vars(sys.modules[name])) for name in ("sbi", "sbi.inference", "sbi.utils")
    }
    return {
        "classes": {cls: dict(vars(cls)) for cls in classes()},
        "modules": modules,
        "namespaces": namespaces,
    }


@pytest.fixture(autouse=True)
def _unpatched() -> Iterator[None]:
    """Begin and end without a patch, and require that the end is like the beginning."""
    unpatch_sbi()
    before = picture()
    yield
    unpatch_sbi()
    assert picture() == before


def trained_by_ignite(trainer) -> bool:
    """Train, and return whether sbi_ignite did it."""
    trainer.train(max_num_epochs=1)
    return getattr(trainer, "training_summary", None) is not None


@pytest.mark.parametrize("name", METHODS)
def test_sbis_own_classes_train_by_sbi_ignite_while_it_is_on(name):
    """Names imported before included; afterwards sbi trains by itself again."""
    assert not trained_by_ignite(ready(name, num_rows=60, inference=sbi.inference))
    with patch_sbi():
        assert trained_by_ignite(ready(name, num_rows=60, inference=sbi.inference))
    assert not trained_by_ignite(ready(name, num_rows=60, inference=sbi.inference))


def test_the_typed_form_works_on_sbis_own_classes():
    with patch_sbi():
        patched = train(ready(inference=sbi.inference), TrainConfig(max_epochs=2))
        assert isinstance(patched, IMPORTED_BEFORE)
        assert type(patched) is sbi.inference.NPE_C
    assert same(patched, train(ready(), TrainConfig(max_epochs=2)))


def test_instances_and_subclasses_made_before_are_reached():
    torch.manual_seed(1)
    made_before = ready(inference=sbi.inference)
    of_a_user = ready(inference=sbi.inference)
    of_a_user.__class__ = OfAUser
    patch_sbi()
    assert trained_by_ignite(made_before)
    assert trained_by_ignite(of_a_user)
    assert of_a_user.before_train
    assert of_a_user.training_summary.method == "OfAUser"


def test_twice_is_as_good_as_once():
    patch_sbi()
    once = picture()
    patch_sbi()
    assert picture() == once
    unpatch_sbi()
    assert "training" not in vars(sbi)
    unpatch_sbi()


def test_a_block_inside_a_patch_leaves_it_on():
    patch_sbi()
    with patch_sbi():
        pass
    assert trained_by_ignite(ready(num_rows=60, inference=sbi.inference))


def test_nested_blocks_end_with_the_outer_one():
    with patch_sbi():
        with patch_sbi():
            pass
        assert hasattr(sbi, "training")
    assert not hasattr(sbi, "training")


def test_a_block_that_raises_is_undone():
    with pytest.raises(LookupError), patch_sbi():
        raise LookupError
    assert not hasattr(sbi, "training")


def test_a_patch_object_may_be_entered_later():
    switch = patch_sbi()
    with switch:
        assert hasattr(sbi, "training")
    assert not hasattr(sbi, "training")


def test_documentation_and_the_first_parameters_stay_sbis():
    """What is added comes after them; see tests/typing/test_signatures.py."""
    for name in METHODS:
        cls = getattr(sbi.inference, name)
        before, documentation = list(inspect.signature(cls.train).parameters), cls.train.__doc__
        with patch_sbi():
            patched = getattr(sbi.inference, name).train
            assert list(inspect.signature(patched).parameters)[: len(before)] == before
            assert patched.__doc__ == documentation


def test_sbi_training_is_importable_only_while_it_is_on():
    """It offers the names of EP-01, and is forgotten afterwards."""
    with pytest.raises(ImportError):
        importlib.import_module("sbi.training")
    with patch_sbi():
        module = importlib.import_module("sbi.training")
        from sbi.training import EarlyStopping, LoggingConfig, LossArgs, LossArgsNPE

        assert module.TrainConfig is TrainConfig
        assert (EarlyStopping, LoggingConfig, LossArgs, LossArgsNPE) == (
            sbi_ignite.EarlyStopping,
            sbi_ignite.LoggingConfig,
            sbi_ignite.LossArgs,
            sbi_ignite.LossArgsNPE,
        )
        families = {n for n in sbi_ignite.__all__ if n.startswith("LossArgs")}
        assert families - {"LossArgsMarginal"} <= set(module.__all__)
        assert {"run_training", "TrainingSummary", "Callback"} <= set(module.__all__)
    with pytest.raises(ImportError):
        importlib.import_module("sbi.training")


@pytest.mark.skipif(not hasattr(sbi.inference, "NPE_PFN"), reason="this sbi has none")
def test_npe_pfn_refuses_new_arguments_while_it_is_on():
    trainer = object.__new__(sbi.inference.NPE_PFN)
    with patch_sbi(), pytest.raises(TypeError, match=r"NPE_PFN\.train\(\) takes no arguments"):
        trainer.train(TrainConfig())


def test_our_own_classes_do_not_care_about_the_patch():
    plain = train(ready(), max_num_epochs=1)
    with patch_sbi():
        assert same(plain, train(ready(), max_num_epochs=1))


def test_a_block_that_begins_after_another_has_ended_is_patched():
    """The other one ends between this one's call and its beginning, as threads may."""
    with patch_sbi():
        later = patch_sbi()
    with later:
        assert is_patched()
    assert not is_patched()


def test_many_threads_may_switch_at_once():
    """No thread sees half a patch, and at the end nothing is left."""
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def switch() -> None:
        try:
            start.wait()
            for _ in range(40):
                with patch_sbi():
                    ours = NeuralInference._run_training_loop.__wrapped__  # type: ignore[attr-defined]
                    assert ours is not None
                    importlib.import_module("sbi.training")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=switch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not hasattr(sbi, "training")


def test_a_training_in_progress_ends_by_the_door_it_came_through():
    """Undoing the patch from a callback does not break the training that is running."""

    class Unpatch:
        def on_epoch_end(self, state):
            unpatch_sbi()

    patch_sbi()
    trainer = ready(inference=sbi.inference)
    trainer.train(TrainConfig(max_epochs=2), callbacks=[Unpatch()])
    assert trainer.epoch == 2
