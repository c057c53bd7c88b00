"""Label sentences -> text embeddings -> the rows an ECG is compared with."""
