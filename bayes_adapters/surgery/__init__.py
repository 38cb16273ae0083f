"""What is done to an adapter beside training it: pruning, merging, folding, export, noise around a trained one."""
