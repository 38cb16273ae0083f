"""A guard on the answers of a small language model: what it lets through, what it hands to a tool, what it costs."""
