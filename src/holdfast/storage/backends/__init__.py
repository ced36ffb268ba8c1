"""What holds a bucket's objects: an object store (``objects``), or a directory (``disk``)."""
