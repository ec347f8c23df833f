"""From a request to frames: noise, levels, solver, guidance, and the generator that joins them."""
