"""One search shared by several processes."""
