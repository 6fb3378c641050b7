"""Measures how fast the training loop is: `python -m common.speed`."""
