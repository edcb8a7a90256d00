"""Convolutional autoregressive networks of images."""
