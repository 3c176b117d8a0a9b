"""Summaries in bulk: beam search, T5's forward pass for it, batches by length."""
