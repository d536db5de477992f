"""Running a study: trials, their store, the search, progress."""
