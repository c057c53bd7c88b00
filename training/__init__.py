"""Makes the artifact that the worker loads: encoder, label bank, thresholds, model card."""
