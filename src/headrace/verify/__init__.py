"""Proves that a destination equals its source at one LSN, row by row."""

from headrace.verify.table import TableVerification, verify_table

__all__ = ["TableVerification", "verify_table"]
