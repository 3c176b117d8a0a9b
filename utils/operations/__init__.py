"""The commands around a run: status, diagnosis, validation, clean-up. Torch-free."""
