//! mm-cache
