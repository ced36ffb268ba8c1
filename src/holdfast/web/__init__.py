"""The faces: HTTP surfaces over the use cases. The only floor with an event loop, and no logic of its own."""
