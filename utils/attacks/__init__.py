"""Gradient-guided attacks on T5 summarizers: HotFlip, universal triggers, their controls and transfer."""
