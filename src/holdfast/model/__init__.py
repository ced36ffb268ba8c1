"""Pure values, no input or output: digests, names, OCI documents, snapshot documents."""
