"""One paper, one file. What an algorithm must have is in `edge_runtime/algorithm.py`."""
