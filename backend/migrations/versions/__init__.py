"""The revisions, the file's number is its place."""
