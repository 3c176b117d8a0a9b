"""From the six data sets to tokenised, decontaminated splits on disk."""
