"""TensorRT engines: what they are made of, their plans, and how they run on a GPU."""
