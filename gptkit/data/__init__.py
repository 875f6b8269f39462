"""Texts, and the tokens that a model is trained on."""
