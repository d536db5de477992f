"""Networks, pre-training, and the loops that fine-tune by a method."""
