"""Recorded counts to scores as one ONNX graph a rate, made from the filters themselves."""
