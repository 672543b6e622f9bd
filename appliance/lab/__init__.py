"""A small Internet in network namespaces, and the main job of the product run inside it."""
