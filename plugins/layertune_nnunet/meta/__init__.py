"""Meta batches in nnU-Net: their cases, their loader, and the pass over one of them."""
