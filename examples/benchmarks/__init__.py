"""Time and memory beside PEFT, and the checks that need a CUDA GPU."""
