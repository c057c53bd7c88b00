"""A trained run -> an artifact, and its way to the running workers."""
