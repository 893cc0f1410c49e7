//! mm-tch
