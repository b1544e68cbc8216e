"""From the JSON of any Keras to the neutral `spec`: one vocabulary, one kind of graph.

Read `read` first: it finds out who wrote the file, and reads models and layers.
`keras_0`, `keras_1` and `keras_2` translate the words of one era each; `functional` and
`old_graph` add layers and calls to a `draft`; `dtypes` knows types of numbers,
`lambda_code` names what a Lambda uses.
"""
