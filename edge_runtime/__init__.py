"""On-device edge training runtime with a compression pipeline."""

__version__ = "0.1.0"
