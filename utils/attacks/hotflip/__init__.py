"""HotFlip: a few flipped tokens of one example, its controls and its transfer."""
