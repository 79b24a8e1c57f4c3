"""Nothing comes in; the version of the package goes out."""

__version__ = "0.1.0"
