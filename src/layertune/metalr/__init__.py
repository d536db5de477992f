"""MetaLR: one learning rate per layer, learned online."""
