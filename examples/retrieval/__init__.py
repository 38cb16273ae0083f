"""Which script does this recording say, and is it there at all? Spoken prompts and scripts, found by each other."""
