"""Servers, doubles and contract suites for tests of Headrace and of its users."""
