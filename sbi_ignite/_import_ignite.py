"""Import ignite before anything else does, without its warnings about torch.

`import ignite` pulls in parts of torch that torch itself calls deprecated; with warnings as errors,
as in many test suites, that would make the import of sbi_ignite fail.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    for kind in (DeprecationWarning, FutureWarning):  # the latter from torch 2.15 on
        warnings.filterwarnings("ignore", r"`torch\.jit\.", kind)
    import ignite.engine  # noqa: F401 # imported for its side effect on sys.modules
