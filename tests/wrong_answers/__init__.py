"""Wrong answers to the exercises of each lesson, with words of their messages."""


def function(head):
    """Return lines -> the source of a function with that head and these lines."""

    def write(*lines):
        return f"def {head}:\n" + "".join(f"    {line}\n" for line in lines)

    return write


def changed(source):
    """Return (old, new), ... -> the source with these pieces, each there once, new."""

    def write(*changes):
        text = source
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    return write
