//! Measurements, each beside its physical floor.
