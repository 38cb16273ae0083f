"""Several encoders together: their blocks, running them in lock-step, and the fusion of their streams."""
