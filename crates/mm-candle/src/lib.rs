//! mm-candle
