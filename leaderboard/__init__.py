"""Tables and published results."""
