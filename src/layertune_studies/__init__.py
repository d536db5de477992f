"""The demo and the benchmarks, built on layertune as a user would."""
