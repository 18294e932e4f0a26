"""Where data comes from: one file per data set. `edge_runtime.data` is the door to them."""
