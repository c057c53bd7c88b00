"""What runs the worker somewhere: local services, images, manifests."""
