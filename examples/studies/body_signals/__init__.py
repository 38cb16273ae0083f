"""Five body signals: is this person under stress? One task with any number of modalities, split by person."""
