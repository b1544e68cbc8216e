"""From the JSON of any Keras to the neutral `spec`: one vocabulary, one kind of graph.

Read `read` first: it finds the version and reads each layer. `keras_0`, `keras_1` and
`keras_2` translate the words of one era each; `assembly` puts layers and calls
together; `dtypes` knows types of numbers, `lambda_code` names what a Lambda uses.
"""
