"""What is freed goes back to the system when it is asked for."""

from __future__ import annotations

import ctypes
import sys

import pytest

from sbi_ignite.freed_memory import return_freed_memory
from tests.small import python

SCRIPT = """
import re
from pathlib import Path
import torch
from sbi_ignite.freed_memory import return_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3

blocks = [torch.ones(25_000) for _ in range(1_000)]  # 100 MB, each block below what is mapped alone
kept = blocks[::50]
del blocks
before = resident()
assert return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_pieces_between_what_is_in_use_go_back_to_the_system():
    try:
        ctypes.CDLL(None).malloc_trim  # noqa: B018 # another C library lacks it
    except (AttributeError, OSError):
        pytest.skip("no glibc")
    done = python("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 50


def test_it_can_be_asked_for_at_any_time():
    assert return_freed_memory() in (True, False)
