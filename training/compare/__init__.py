"""Recipes side by side on the same records."""
