"""Operations, one module per family; in each, a forward stands above its backward."""
