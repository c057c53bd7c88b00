"""Which windows must exist, and whether they were published once: `ecg-worker audit`."""
