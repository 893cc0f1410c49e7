//! Checks of configuration values, with messages that name the file and the key.

use crate::Error;
use std::{fmt::Debug, path::Path};

/// Larger sizes are in no model, and would overflow where sizes are multiplied.
const LARGEST: usize = 1 << 20;

/// Checks the values of one configuration file.
pub(crate) struct Check<'a>(pub(crate) &'a Path);

impl Check<'_> {
    /// A width or a count: at least one, and of this world.
    pub(crate) fn size(&self, key: &str, value: usize) -> Result<(), Error> {
        self.holds((1..=LARGEST).contains(&value), key, value, format!("expected 1 to {LARGEST}"))
    }

    /// A number of layers.
    pub(crate) fn layers(&self, key: &str, value: usize, least: usize) -> Result<(), Error> {
        self.holds((least..=4096).contains(&value), key, value, format!("expected {least} to 4096"))
    }

    /// A number that is computed with.
    pub(crate) fn positive(&self, key: &str, value: f64) -> Result<(), Error> {
        self.holds(value.is_finite() && value > 0.0, key, value, "expected a positive number".to_owned())
    }

    /// A condition that ties several values together.
    pub(crate) fn holds(&self, ok: bool, key: &str, found: impl Debug, reason: String) -> Result<(), Error> {
        if ok {
            return Ok(());
        }
        Err(Error::Config { file: self.0.to_owned(), key: key.to_owned(), found: format!("{found:?}"), reason })
    }

    /// A kind of model that is written here.
    pub(crate) fn supported(&self, ok: bool, key: &str, found: impl Debug, supported: &str) -> Result<(), Error> {
        if ok {
            return Ok(());
        }
        let (key, found, supported) = (key.to_owned(), format!("{found:?}"), supported.to_owned());
        Err(Error::Unsupported { file: self.0.to_owned(), key, found, supported })
    }
}
