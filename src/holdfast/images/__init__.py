"""Images: from engines into a store, and from a store into engines."""
