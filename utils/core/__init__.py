"""What every room uses: settings, paths, files, locks, errors, progress, provenance. Torch-free."""
