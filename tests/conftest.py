"""Puts tests/ on the import path, for what its folders share."""
