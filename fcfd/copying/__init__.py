"""Copying: private copies of modules, which stages run so that no module of the user is touched."""
