"""Trainers for nnU-Net, and the mixins that they are made of."""
