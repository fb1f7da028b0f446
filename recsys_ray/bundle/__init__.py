"""The files of a model bundle, the folder `model/` of a run: everything that a trained model needs in order to predict.

manifest.json              written last: what the bundle is, size and SHA-256 of every other file, place of every tensor
config.json                the registered name of the model and its settings
schema.json                the columns that it reads
vocabularies/              the values of each embedding table that has a vocabulary, as Parquet
weights/*.safetensors      the tensors, in parts that the ranks which held them wrote

manifest.py defines and checks manifest.json, writer.py writes tensors, reader.py verifies a bundle and reads tensors from it, and
version_0_1.py reads the bundles of version 0.1, which had one file of weights and no manifest. Nothing here runs code from a
bundle: JSON, Parquet and safetensors hold data alone.
"""
