"""Streams of ECG chunks in, findings out. Decision support and research software, not a medical device."""
