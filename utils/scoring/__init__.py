"""Text to scores: ROUGE. Torch-free; the data room, the evaluation and the attacks use it alike."""
