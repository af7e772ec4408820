"""Golden packs, and the check that holds a port of the model against one: the porter's tool."""
