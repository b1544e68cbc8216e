"""Where arrays come from: which Keras laid them out, and on which backend.

Both belong to the weights. Keras 2 writes both beside the arrays, so a file of
weights may be older than the JSON of its model, or come from another backend.
"""

from dataclasses import dataclass, replace

from course_lib.keras_models.source.hdf5 import Group, Hdf5
from course_lib.keras_models.spec import ModelSpec, Version

_KERAS_1 = Version(1, 2, 2, False)


@dataclass(frozen=True)
class Origin:
    """Who wrote the arrays.

    Theano's convolutions turn the kernel by 180 degrees, and its padding for "same"
    differs.
    """

    version: Version
    theano: bool = False
    is_given: bool = False  # the caller said `theano`, which no file overrides

    @classmethod
    def of_model(cls, spec: ModelSpec, theano_kernels: bool | None) -> "Origin":
        """Return what the model and the caller say, who goes before any file."""
        is_given = theano_kernels is not None
        theano = theano_kernels if is_given else spec.backend == "theano"
        return cls(spec.version, bool(theano), is_given)

    def of_file(self, file: Hdf5, group: Group) -> "Origin":
        """Return what a file of Keras 1 or 2 says; `group` holds the layers' groups.

        Without the attribute keras_version it is of Keras 1, and without the
        attribute backend its kernels are those of the model's backend.

        Source: keras 2.2.4 keras/engine/saving.py#L228.
        """
        written, backend = (
            file.text(group, key) or file.text(file.root, key)
            for key in ("keras_version", "backend")
        )
        version = self.version if self.version < (2, 0) else _KERAS_1
        if written is not None:
            version = Version.parse(written)
        known = backend is not None and not self.is_given
        theano = backend == "theano" if known else self.theano
        return replace(self, version=version, theano=theano)


KERAS_3 = Origin(Version(3, 0, 0, False))
