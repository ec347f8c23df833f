"""What people run: the command line, the Python entry points, and the files they write."""
