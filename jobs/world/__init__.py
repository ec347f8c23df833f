"""A small world that knows the truth: coloured shapes that move, drawn and put into words."""
