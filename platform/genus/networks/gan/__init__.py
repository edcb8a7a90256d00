"""Generators and discriminators: StyleGAN2, R3GAN, DCGAN and perceptrons."""
