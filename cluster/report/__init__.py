"""A run as one JSON file, and that file as one HTML page with pictures."""
