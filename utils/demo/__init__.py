"""The demo's corpus and pretrained model, made here."""
