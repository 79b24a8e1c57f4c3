"""What only a CUDA device can show; without one these tests are skipped."""
