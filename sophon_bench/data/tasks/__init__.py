"""What a domain asks of a model."""
