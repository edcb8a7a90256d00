"""How networks, gradients, optimizers and averages are spread over the ranks."""
