"""Run a part of the tests with other versions of Python and of the libraries."""
