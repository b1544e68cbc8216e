"""The incremental sweep in C++, compiled on the reader's machine."""
