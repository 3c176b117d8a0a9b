"""Summaries of test sets and their ROUGE scores."""
