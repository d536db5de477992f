"""nnU-Net's files from the command line: weights, portable models, networks, trainers."""
