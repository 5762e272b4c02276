"""Token maps: how an encoder layer's tokens come from all tokens and go back."""
