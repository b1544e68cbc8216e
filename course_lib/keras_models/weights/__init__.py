"""Arrays of weight files, each copied into the variable it belongs to.

Read `fill` first. `slots` lists the variables in Keras's order, `layouts` says how a
file lays one out, `origin` who wrote the file, `keras_3` pairs the groups of Keras 3's
files with layers, and `naming` checks layers that have other names there.
"""
