"""The command line of `ecg-train`, one command a file."""
