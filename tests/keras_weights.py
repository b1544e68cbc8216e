"""Files of weights for the tests of what may be wrong with them."""

import h5py


def hdf5_file(path, **members):
    """Write weights of one layer; a dict describes a data set."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["dense_1"]
        group = file.create_group("dense_1")
        group.attrs["weight_names"] = list(members)
        for name, member in members.items():
            if isinstance(member, dict):
                group.create_dataset(name, **member)
            else:
                group[name] = member
    return path
