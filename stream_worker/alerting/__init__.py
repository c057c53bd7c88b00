"""Findings -> alert episodes."""
