"""Token maps: reduce all tokens to those of an encoder layer, and restore them."""
