"""Invertible networks: bijections that compose, and the architectures made of them."""
