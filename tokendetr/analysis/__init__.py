"""Operations, time and memory of models, and tables of them."""
