"""One side of a pair recorded in a folder, here or on another machine; and two such folders compared."""
