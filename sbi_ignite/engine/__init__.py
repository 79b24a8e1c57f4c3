"""A model, a loss and batches come in; the trained model and a summary go out."""

import sbi_ignite._import_ignite  # noqa: F401 # before the modules of this room import ignite
