"""Complete jobs to copy from."""
