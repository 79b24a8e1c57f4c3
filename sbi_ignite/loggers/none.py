"""A backend that discards everything."""

from __future__ import annotations

from sbi_ignite.loggers.base import Backend


class Nothing(Backend):
    """Discards everything: logging is asked for, and switched off."""

    name: str = "none"
