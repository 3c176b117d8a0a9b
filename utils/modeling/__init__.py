"""T5: loading, saving, the constraint, and the fast forward pass."""
