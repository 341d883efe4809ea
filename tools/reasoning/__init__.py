"""Synthetic reasoning with exact answers, and the training of a small model on it."""
