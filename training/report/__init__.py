"""The evaluation as a page to read."""
