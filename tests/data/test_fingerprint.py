"""Fingerprints of data notice every other value, shape and dtype."""

from __future__ import annotations

import time

import pytest
import torch

from sbi_ignite.data.fingerprint import CHUNK, fingerprint_data


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(3, 7),
        torch.zeros(21),
        torch.zeros(7, 3, dtype=torch.float64),
        torch.full((7, 3), -0.0),
        torch.zeros(7, 3).index_fill(0, torch.tensor([6]), 1e-45),
    ],
)
def test_any_other_value_shape_or_dtype_is_another_fingerprint(other):
    """Not even the smallest number, or the sign of zero, goes unnoticed."""
    assert fingerprint_data([torch.zeros(7, 3)]) != fingerprint_data([other])


def test_equal_values_have_equal_fingerprints():
    """Neither strides nor the tensor's storage matter, in one chunk or in several."""
    for rows in (5, CHUNK // 4 + 3):
        values = torch.randn(rows, 2)
        strided = torch.stack([values, values], dim=1)[:, 1]
        assert fingerprint_data([values]) == fingerprint_data([strided])
        changed = values.clone()
        changed[-1, -1] += 1
        assert fingerprint_data([values]) != fingerprint_data([changed])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.complex64]
)
def test_every_dtype_and_empty_tensors_have_fingerprints(dtype):
    """Also those that numpy does not know."""
    for shape in ((3, 2), (0, 2), ()):
        assert fingerprint_data([torch.ones(shape).to(dtype)])[0]["shape"] == list(shape)


@pytest.mark.slow
def test_a_gigabyte_takes_about_a_second():
    """Measured in processor time, which other work on the machine does not stretch."""
    values = torch.zeros(1 << 28)
    began = time.process_time()
    fingerprint_data([values])
    seconds = time.process_time() - began
    print(f"{values.numel() * 4 / seconds / 1e9:.2f} GB per second of processor time")
    assert seconds < 4
