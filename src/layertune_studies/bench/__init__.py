"""Benchmarks: what layertune costs, beside the plain step."""
