"""How one draws: free functions over a denoiser, each citing its algorithm."""
