"""Proves that a destination equals its source at one LSN or version, row by row."""

from headrace.verify.outcome import TableVerification

__all__ = ["TableVerification"]
