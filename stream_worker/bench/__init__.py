"""What this machine can carry: `ecg-worker bench`."""
