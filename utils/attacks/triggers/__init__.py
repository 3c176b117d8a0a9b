"""Universal triggers: one sequence of tokens for every example."""
