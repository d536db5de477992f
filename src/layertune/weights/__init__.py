"""Pre-trained weights: files of any host, and loading what fits into a network."""
