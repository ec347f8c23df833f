"""`longreel serve`: a queue of renders, the processes that run it, and its ways out over HTTP."""
