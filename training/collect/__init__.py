"""Windows of the running system, back for retraining."""
