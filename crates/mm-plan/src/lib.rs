//! mm-plan
