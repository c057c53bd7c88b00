"""Annotated recordings as their owners keep them -> `Annotated`, one layout a file; `folders` is the door."""
