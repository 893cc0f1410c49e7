//! How much is tried: every day a part, by `cargo xtask laws` the whole.

/// The variable that `cargo xtask laws` sets.
const VARIABLE: &str = "MM_PLAN_LAWS";

/// `whole` where all is to be tried, else `every_day`.
pub(crate) fn effort<T>(every_day: T, whole: T) -> T {
    if std::env::var_os(VARIABLE).is_some_and(|value| value == "whole") { whole } else { every_day }
}
