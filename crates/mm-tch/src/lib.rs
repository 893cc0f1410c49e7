//! tch (libtorch) models under memory management: the manifest and the intent; the adapter is to come.
//!
//! The intent: the same engine and the same two words as mm-candle, `component.run(|m| ..)` and `Blocks`.
//! A home is a `tch::Tensor`; `set_data` swaps its memory, every layer of an `nn::Module` sees the swap,
//! and an evicted home holds an empty tensor whose dtype no kernel takes.
//!
//! - Feature `libtorch` brings tch 0.24 in, which needs libtorch 2.11.0 (`LIBTORCH=…`). It adds API and
//!   changes no behaviour. Without it this crate is empty and builds on any machine.
//! - Feature `doc-only` lets check, clippy and doc run with no libtorch.
#![deny(unsafe_code)]
