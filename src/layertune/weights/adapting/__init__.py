"""Make weights fit a network that differs in its input, its classes, its kernels, its size or its depth."""
