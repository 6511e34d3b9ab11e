"""Region pooling inside other libraries. Nothing here is imported before it is asked for."""
