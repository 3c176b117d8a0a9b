"""Every setting of the experiment. Standard library only, so that a login node's Python can read it."""
