"""Network Alchemy: norm-only training, redundant kernels, the penalty on gammas, and ranked checkpoints."""
