"""To the line: the operations of both frameworks, matched by their numbers, and the first that have no counterpart."""
