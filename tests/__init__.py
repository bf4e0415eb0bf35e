"""Tests, mirroring the folders; references that they compare with are in `reference/`."""
