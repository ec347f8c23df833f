"""Operations on tensors that models call, each beside its plain definition."""
