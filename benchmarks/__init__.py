"""Questions about speed and quality come in; tables go out. Run as `python -m benchmarks.NAME`."""
