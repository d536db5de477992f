"""Meta batches in nnU-Net: their cases, their loader, the meta step."""
