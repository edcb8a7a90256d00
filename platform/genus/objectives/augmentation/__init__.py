"""Augmentation of what a discriminator sees: one idea a file, put together by ``config``."""
