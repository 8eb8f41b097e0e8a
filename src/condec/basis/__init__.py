"""Ground of the house: used by every room, uses none.

`errors`, `shapes` (words for axes), `options` (frozen records with a plain form), `records` (that
print in one line), `npz` (records that are kept), `files` (whole or not at all), `read_ahead`
(threads), `registry` (parts that other packages bring) and `metrics` (numbers from tensors).
Nothing here knows of models, stores or dictionaries.
"""
