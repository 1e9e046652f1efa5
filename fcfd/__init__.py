"""Distillation through the networks themselves: function-consistent feature distillation, functional."""
