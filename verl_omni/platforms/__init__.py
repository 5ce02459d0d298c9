"""Hardware platforms added to verl."""
