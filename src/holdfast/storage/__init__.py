"""The bucket, and the store that lies in it."""
