"""What judges predictions: metrics, intervals, calibration, and the parts of the data they are asked of."""
