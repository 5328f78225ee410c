"""The command line: a thin face over `headrace.project`, and nothing that Python could not do."""

from headrace.cli.app import app, main

__all__ = ["app", "main"]
