"""Fine-tuning of one arm: batches, Trainer, checkpoints, record, several GPUs, the stage."""
