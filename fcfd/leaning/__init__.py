"""Operations whose gradient keeps no more than it needs, where parameters are frozen."""
