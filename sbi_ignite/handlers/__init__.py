"""Handlers that attach to the training engine, such as clipping, stopping and checkpoints."""

import sbi_ignite._import_ignite  # noqa: F401 # before the modules of this package import ignite
