"""Sentiment of utterances (MELD, text only): every method of the library on the same small task."""
