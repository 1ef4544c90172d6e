"""sophon-bench: does a model that claims to be non-fine-tunable keep its word?"""

__version__ = "0.1.0"
