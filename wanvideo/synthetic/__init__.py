"""Tiny or random models of the real architecture."""
