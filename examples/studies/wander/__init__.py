"""Why is Wander behind? Its placement, product, size, start and reading, each changed alone, on three tasks."""
