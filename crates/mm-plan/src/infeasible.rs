//! Why there is no plan, split by remedy.

use alloc::string::String;
use core::fmt;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Infeasible {
    /// The device is too small, whatever is freed.
    NeverFits {
        /// The component that needs most in the phase that doesn't fit.
        component: String,
        /// Device bytes that phase needs at the least, reserves included.
        need: u64,
        /// The device's total bytes.
        have: u64,
        /// The smallest free VRAM with which all phases fit under this strategy.
        smallest: u64,
    },
    /// It would fit the device, but not what is free now.
    NotNow {
        /// The component that needs most in the phase that doesn't fit.
        component: String,
        /// Device bytes that phase needs at the least, reserves included.
        need: u64,
        /// Device bytes free now.
        have: u64,
        /// The smallest free VRAM with which all phases fit under this strategy.
        smallest: u64,
    },
    /// The input contradicts itself.
    BadInput {
        /// What is wrong and where.
        text: String,
    },
}

impl Infeasible {
    /// Stable code, as in JSON: `never_fits`, `not_now`, `bad_spec`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NeverFits { .. } => "never_fits",
            Self::NotNow { .. } => "not_now",
            Self::BadInput { .. } => "bad_spec",
        }
    }
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverFits { component, need, have, smallest } => write!(
                f,
                "{component} needs {need} bytes on the device at the least, the device has {have}; \
                 the smallest budget that works is {smallest} bytes"
            ),
            Self::NotNow { component, need, have, smallest } => write!(
                f,
                "{component} needs {need} bytes on the device at the least, {have} are free now; \
                 it would fit once {smallest} bytes are free"
            ),
            Self::BadInput { text } => f.write_str(text),
        }
    }
}

impl core::error::Error for Infeasible {}
