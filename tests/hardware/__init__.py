"""Tests on real graphics processors; each skips, saying why, where there is none."""
