"""The rules that correct each step: those of the paper and its later work, and those of version 0.1."""
