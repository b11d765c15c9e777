"""Attention: dispatch, backends, rotary positions."""
