"""A training engine comes in; rules about clipping, stopping and keeping are attached to it."""

import sbi_ignite._import_ignite  # noqa: F401 # before the modules of this room import ignite
