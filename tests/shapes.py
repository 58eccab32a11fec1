"""The checker of annotations under which shapes are checked at run time.

python -m pytest -p tests.shapes --jaxtyping-packages=landscape,tests.shapes.checked tests/...
"""

from beartype import BeartypeConf, beartype

# A whole number passes for a float, as it does for a static checker.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
