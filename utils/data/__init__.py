"""Data preparation: fetch, clean, decontaminate and tokenize the data sets of an experiment."""
