"""What a run will need and cost, worked out before it starts."""
