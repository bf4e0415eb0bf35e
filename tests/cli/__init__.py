"""Tests of the command and of the package around it."""
