"""What is done to an adapter besides training: pruning, merging, folding, export, noise around a trained one."""
