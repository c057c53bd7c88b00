"""What an ECG encoder is: signal conventions, preprocessing, artifact and backends. Imports nothing else of ours."""
