"""What predictions are worth: metrics, records of them, intervals, attribution, pictures."""
