"""What is minimised: one file an idea. Objectives hold no optimizer, no device and no networks."""
