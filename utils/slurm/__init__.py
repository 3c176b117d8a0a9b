"""What a run does with the queue: sbatch lines, submission, records, live jobs. Torch-free."""
