"""From per-example records to numbers and conclusions. Torch-free."""
