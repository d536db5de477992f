"""Tables, figures, statistics and pages of a study's results."""
