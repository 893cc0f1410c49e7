//! mm-engine
