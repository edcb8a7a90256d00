"""Parameter groups, AdamW and Muon, schedules, exponential moving averages."""
