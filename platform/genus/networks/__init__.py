"""What is differentiated: plain modules that know nothing of noise, loss or distribution."""
