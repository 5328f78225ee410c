"""Proves that a destination equals its source."""
