"""The revisions, numbered in order by file name."""
