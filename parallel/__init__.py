"""How a model is spread over devices: the next issue fills this folder."""
