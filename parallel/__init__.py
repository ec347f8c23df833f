"""How a model is spread over devices: tasks, stages, links, chains in one process or on Ray."""
