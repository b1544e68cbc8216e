"""Files and what is in them: JSON, zips, HDF5, TensorFlow.js. Nothing in them is run.

Read `opening` first: it finds the model's JSON and the weights that belong to it. It
uses `files` (limits, zips, arrays), `hdf5` with its process `hdf5_child`, and
`tensorflow_js`; `foreign` names what is no Keras file.
"""
