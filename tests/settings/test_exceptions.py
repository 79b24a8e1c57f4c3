"""Every error is ours and also the built-in that a caller would expect."""

from __future__ import annotations

import pickle

import pytest

from sbi_ignite import exceptions
from sbi_ignite.exceptions import NonFiniteLossError, SbiIgniteError

BUILT_INS = {
    "SettingsError": (ValueError,),
    "ArgumentError": (TypeError,),
    "WrongTypeError": (ValueError, TypeError),
    "UnsupportedSbiError": (ImportError,),
    "NotYetError": (NotImplementedError,),
    "DataError": (ValueError,),
    "NoSimulationsError": (RuntimeError,),
    "NonFiniteLossError": (ValueError,),
    "RankFailedError": (RuntimeError,),
    "MissingPackageError": (ImportError,),
    "CheckpointError": (RuntimeError,),
    "CheckpointMismatchError": (RuntimeError,),
}


def test_the_table_above_lists_every_error():
    assert {*BUILT_INS, "SbiIgniteError", "SbiIgniteWarning"} == set(exceptions.__all__)


def test_our_warning_is_silenced_like_any_user_warning():
    assert issubclass(exceptions.SbiIgniteWarning, UserWarning)


@pytest.mark.parametrize("name", BUILT_INS)
def test_an_error_is_caught_as_ours_and_as_the_built_in(name):
    error = getattr(exceptions, name)("what happened")
    assert isinstance(error, (SbiIgniteError, *BUILT_INS[name]))
    assert all(isinstance(error, kind) for kind in (SbiIgniteError, *BUILT_INS[name]))
    assert str(error) == "what happened"


def test_a_non_finite_loss_names_epoch_iteration_and_rows():
    error = NonFiniteLossError("NaN", epoch=3, iteration=70, rows=[5, 8])
    assert (error.epoch, error.iteration, error.rows) == (3, 70, (5, 8))
    assert not error.validation


def test_a_non_finite_loss_survives_the_way_between_processes():
    error = NonFiniteLossError("NaN", epoch=3, iteration=70, rows=[5, 8], validation=True)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.epoch, copied.iteration, copied.rows) == ("NaN", 3, 70, (5, 8))
    assert copied.validation
