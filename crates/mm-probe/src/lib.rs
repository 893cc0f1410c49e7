//! mm-probe
