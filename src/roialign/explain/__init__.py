"""See what region pooling does to one box."""
