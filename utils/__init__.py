"""The library that the stages call: one module per idea, named for the idea."""
