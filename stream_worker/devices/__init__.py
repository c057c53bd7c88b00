"""The device side: chunks to publish, and simulated patients."""
