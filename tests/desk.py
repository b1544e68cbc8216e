"""A learner at a lesson: its exercises, its cells, and what its checks say.

Without pytest: docs/make_teach.py asks here what each wrong answer gets.
"""

from course_lib.lessons.exercises import Exercise


def exercises_of(module):
    """Return {name: Exercise}; the name is that of the cells' tags."""
    found = (v for v in vars(module).values() if isinstance(v, Exercise))
    return {exercise.name.partition(".")[2]: exercise for exercise in found}


def cell_with(notebook, tag):
    (cell,) = (c for c in notebook.cells if tag in c.metadata.get("tags", ()))
    return cell.source


class Desk:
    """A learner's kernel: the notebook's `setup` cells have been run in it."""

    def __init__(self, notebook):
        self.notebook, self.names = notebook, {"__name__": "__main__"}
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", ()):
                self.run(cell.source)

    def run(self, source):
        exec(compile(source, "<cell>", "exec"), self.names)

    def check(self, name, answer):
        """Run an answer and the exercise's check cell; return its Verdict."""
        self.run(answer)
        return self.verdict(name)

    def verdict(self, name):
        """Run the exercise's check cell on the answer that has been run."""
        *before, last = cell_with(self.notebook, f"check:{name}").splitlines()
        assert last.startswith(f"lesson.{name}.check("), last
        self.run("\n".join(before))
        return eval(last, self.names)
