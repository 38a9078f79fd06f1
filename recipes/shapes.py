"""The shapes of a model by what a user calls it: from its config alone, and of an alias not even from that."""

from tokcarve.passes.checkpoint import config_directory
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.known import known

__all__ = ["shapes_of"]


def shapes_of(name: str) -> Geometry:
    """The shapes of the model in a directory, of an alias or of a hub id, whose config.json alone is fetched.

    Raises ModelError for a name that is none of these, and for a config without an adapter.
    """
    found = known(name)
    if found is not None:
        return found
    directory = config_directory(name)
    # brings transformers, which the shapes of an alias do not wait for
    from tokcarve.passes import families
    from tokcarve.passes.families.load import read_config

    return families.geometry(read_config(directory))
