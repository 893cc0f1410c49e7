//! 32 bytes of blake3, and how they are written.

use std::fmt;
use std::str::FromStr;

/// A blake3 digest; both of this crate's ids are one, and each has its own type so that they cannot be mixed up.
macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The raw digest.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(hash.into())
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, ParseDigestError> {
                let hash = blake3::Hash::from_hex(text);
                hash.map(Self::from).map_err(|_| ParseDigestError { text: text.chars().take(80).collect() })
            }
        }
    };
}

digest! {
    /// What an entry of a [`LoadCache`](crate::LoadCache) is kept under.
    Key
}

digest! {
    /// The identity of some bytes, wherever they lie: their blake3 hash. Written as 64 hex digits.
    ContentId
}

impl ContentId {
    /// The id of bytes in memory, hashed on all cores.
    pub fn of(bytes: &[u8]) -> Self {
        blake3::Hasher::new().update_rayon(bytes).finalize().into()
    }
}

/// The text is not 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a content id: 64 hex digits are needed")]
pub struct ParseDigestError {
    /// The text, its first 80 characters.
    text: String,
}
