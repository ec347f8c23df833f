"""The schema, the presets and how both become one frozen configuration."""
