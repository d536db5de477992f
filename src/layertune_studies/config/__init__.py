"""A study's YAML file: its sections, defaults and checks."""
