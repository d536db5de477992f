"""The learning-rate-free rule: one factor on all rates, learned from how the gradient meets the recent movement."""
