"""Pictures of what is kept: gathered in torch or from an export, drawn as a PNG, or as a page that needs no network."""
