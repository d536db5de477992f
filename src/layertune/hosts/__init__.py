"""The parts that two or more hosts share: learned rates, Network Alchemy, meta batches, reports, and plug-ins."""
