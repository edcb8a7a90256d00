"""Features, Fréchet and kernel distances, precision and recall, passports."""
