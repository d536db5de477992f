"""What the commands do with nnU-Net's files: weights, checkpoints, networks, trainers."""
